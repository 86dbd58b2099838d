"""Opens the database and runs transactions in one worker thread.

Everything that the aggregator knows goes through here: "record, then speak". A piece of work is a function on a
SQLAlchemy Core connection; it is durable before its caller goes on, and leaves nothing behind when it raises.
Pieces that wait at the same time share one transaction, each in a savepoint of its own: what takes time is the
disk's promise, not the work.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc, insert, select

from aggregator.store.schema import SCHEMA_VERSION, metadata, schema_version
from fedless.protocol.errors import Code, LocalError

T = TypeVar("T")
BATCH_MAX = 64

# WAL: readers do not stop the writer. FULL: a committed step survives a power cut. secure_delete: erased keys
# are gone.
SQLITE_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=5000",
    "secure_delete=ON",
)


class Database:
    """The aggregator's database; safe to call from any thread and any event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: SimpleQueue[_Piece | None] = SimpleQueue()
        self._worker = Thread(target=self._serve, name="store", daemon=True)
        self._worker.start()

    @classmethod
    def open(cls, url: str) -> Database:
        """Opens the database at an SQLAlchemy URL and makes the tables that it lacks.

        Modules that add tables to `schema.metadata` must be imported before. Raises `LocalError`
        STATE_MISSING, STATE_CORRUPT, DISK_FULL, or WRONG_STATE for another program version's database.
        """
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        database = cls(engine)
        try:
            database.run_now(_create)
        except BaseException:
            database.close()
            raise
        return database

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is durable; an error that it raises undoes what it wrote."""
        return await asyncio.wrap_future(self._submit(work))

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """As `run`, but blocks the caller: for the command line and tests."""
        return self._submit(work).result()

    def close(self) -> None:
        """Waits for the last transaction and closes the connection; again is fine."""
        self._waiting.put(None)
        self._worker.join()

    def _submit(self, work: Callable[[Connection], T]) -> Future[T]:
        if not self._worker.is_alive():
            raise RuntimeError("the database is closed")
        piece = _Piece(work, Future())
        self._waiting.put(piece)
        return piece.future

    def _serve(self) -> None:
        """In the worker: all pieces that wait become one transaction, since making it durable is what takes time."""
        going_on = True
        while going_on:
            batch = [self._waiting.get()]
            while len(batch) < BATCH_MAX and not self._waiting.empty():
                batch.append(self._waiting.get())
            going_on = None not in batch
            self._transact([piece for piece in batch if piece is not None])
        self._engine.dispose()

    def _transact(self, batch: list[_Piece]) -> None:
        done: list[Callable[[], None]] = []
        pieces = [piece for piece in batch if piece.future.set_running_or_notify_cancel()]
        try:
            with self._engine.begin() as connection:
                done = [_attempt(connection, piece) for piece in pieces]
        except BaseException as error:  # noqa: BLE001 - told to those who wait for it, whatever it is
            done = [partial(piece.future.set_exception, _own_error(error)) for piece in pieces]
        for tell in done:
            tell()


@dataclass(frozen=True)
class _Piece:
    """What somebody wants done, and where he waits."""

    work: Callable[[Connection], Any]
    future: Future[Any]


def _attempt(connection: Connection, piece: _Piece) -> Callable[[], None]:
    """Does one piece in a savepoint of its own, so that its failure undoes nothing of the others."""
    savepoint = connection.begin_nested()
    try:
        result = piece.work(connection)
    except Exception as error:
        if isinstance(error, exc.DatabaseError) and not isinstance(error, exc.IntegrityError):
            raise  # the disk is full or worse, and SQLite may have undone everything: nobody's piece is recorded
        savepoint.rollback()
        return partial(piece.future.set_exception, error)
    savepoint.commit()
    return partial(piece.future.set_result, result)


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late for reads; ours is below
    for pragma in SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    version = connection.scalar(select(schema_version.c.version))
    if version is None:
        connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
    elif version != SCHEMA_VERSION:
        detail = f"Expected a database of schema version {SCHEMA_VERSION}, found {version}."
        raise LocalError(Code.WRONG_STATE, detail, fix="Use the version of fedless that made it.")


def _own_error(error: BaseException) -> BaseException:
    """The `LocalError` that says what is wrong with the machine; other mistakes are bugs and stay so."""
    origin = error.orig if isinstance(error, exc.DatabaseError) else None
    code = getattr(origin, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return LocalError(
            Code.DISK_FULL, "The database cannot grow.", fix="Free space on the disk of the state directory."
        )
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return LocalError(
            Code.STATE_CORRUPT, f"The database cannot be read: {origin}.", fix="Restore a back-up."
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return LocalError(
            Code.STATE_MISSING,
            "The database cannot be opened.",
            fix="Check the state directory and its rights.",
        )
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return LocalError(Code.STATE_LOCKED, "The database is in use by another process.")
    return error
