"""Opens the database and runs transactions, one after another, in one worker thread.

Everything that the aggregator knows goes through here: "record, then speak". A transaction is a function on a
SQLAlchemy Core connection; it commits when the function returns and leaves nothing behind when it raises.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc, insert, select

from aggregator.store.schema import SCHEMA_VERSION, metadata, schema_version
from fedless.protocol.errors import Code, LocalError

T = TypeVar("T")

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
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

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
        """What `work` returns, as one transaction in the worker thread; a raised error rolls it back."""
        return await asyncio.wrap_future(self._worker.submit(self._transact, work))

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """As `run`, but blocks the caller: for the command line and tests."""
        return self._worker.submit(self._transact, work).result()

    def close(self) -> None:
        """Waits for the last transaction and closes the connection."""
        self._worker.submit(self._engine.dispose)
        self._worker.shutdown()

    def _transact(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except exc.DatabaseError as error:
            raise _own_error(error) from error


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


def _own_error(error: exc.DatabaseError) -> Exception:
    """The `LocalError` that says what is wrong with the machine; other mistakes are bugs and stay so."""
    code: Any = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return LocalError(
            Code.DISK_FULL, "The database cannot grow.", fix="Free space on the disk of the state directory."
        )
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return LocalError(
            Code.STATE_CORRUPT, f"The database cannot be read: {error.orig}.", fix="Restore a back-up."
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
