"""Opens the database and runs transactions in one worker thread.

Everything that the aggregator knows goes through here: "record, then speak". A piece of work is a function on a
SQLAlchemy Core connection; it is durable before its caller goes on, and leaves nothing behind when it raises.
Pieces that wait at the same time share one transaction, each in a savepoint of its own: what takes time is the
disk's promise, not the work.

A database server that is away is waited for, up to a bound, and the pieces are then done again from the start: so a
piece reads what it needs by its connection, and changes nothing but the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, exc, make_url

from aggregator.store import erasure, migrate
from aggregator.store.backend import Backend
from aggregator.store.postgresql import Postgresql
from aggregator.store.schema import SCHEMA_VERSION
from aggregator.store.sqlite import Sqlite
from fedless.protocol.errors import Code, LocalError

T = TypeVar("T")
BATCH_MAX = 64
WAIT_S = 60.0
HELD_WAIT_S = 2.0  # for the connection of a process that was killed just now
ERASE_AGAIN_S = 1.0
PAUSES_S = (0.1, 0.2, 0.5, 1.0)
_log = structlog.get_logger("aggregator")


class Database:
    """The aggregator's database; safe to call from any thread and any event loop."""

    def __init__(
        self, backend: Backend, wait_s: float, on_lost: Callable[[LocalError], None] = lambda _error: None
    ) -> None:
        self._backend = backend
        self._wait_s = wait_s
        self._on_lost = on_lost
        self._closing = Event()
        self._to_erase = True  # a process that was killed may have left something
        self._erase_at = 0.0
        self._waiting: SimpleQueue[_Piece | None] = SimpleQueue()
        self._worker = Thread(target=self._serve, name="store", daemon=True)
        self._worker.start()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        sole: bool = True,
        wait_s: float = WAIT_S,
        on_lost: Callable[[LocalError], None] = lambda _error: None,
    ) -> Database:
        """Opens the database at an SQLAlchemy URL; makes its tables, or brings them to this program's version.

        `sole`: as the only aggregator of a PostgreSQL database, which a second one is refused while this one lives;
        without it, for a look: nothing is migrated. A server that is away is waited for at most `wait_s`, now and
        whenever it goes away. `on_lost` hears, in the worker thread, that another aggregator has taken the database
        over: this process can write nothing any more. Raises `LocalError` STATE_MISSING, STATE_CORRUPT, DISK_FULL,
        STATE_LOCKED, STORE_UNREACHABLE, CONFIG_INVALID, or WRONG_STATE for a newer program's database.
        """
        backend = backend_of(url, sole=sole)
        with _own_errors(backend):
            _patiently(partial(_prepare, backend, sole=sole), backend, wait_s)
        return cls(backend, wait_s, on_lost)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is durable; an error that it raises undoes what it wrote."""
        return await asyncio.wrap_future(self._submit(work))

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """As `run`, but blocks the caller: for the command line and tests."""
        return self._submit(work).result()

    def close(self) -> None:
        """Waits for the last transaction and closes the connection; again is fine."""
        self._closing.set()
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
            try:
                batch = [self._waiting.get(timeout=ERASE_AGAIN_S if self._to_erase else None)]
            except Empty:
                self._erase()
                continue
            while len(batch) < BATCH_MAX and not self._waiting.empty():
                batch.append(self._waiting.get())
            going_on = None not in batch
            self._transact([piece for piece in batch if piece is not None])
        self._backend.engine.dispose()

    def _transact(self, batch: list[_Piece]) -> None:
        pieces = [piece for piece in batch if piece.future.set_running_or_notify_cancel()]
        attempt = _Attempt(self._backend, pieces)
        try:
            done = _patiently(attempt, self._backend, self._wait_s, self._closing)
        except BaseException as error:  # noqa: BLE001 - told to those who wait for it, whatever it is
            own = self._backend.own_error(error)
            done = [partial(piece.future.set_exception, own) for piece in pieces]
            if isinstance(own, LocalError) and own.code is Code.STATE_LOCKED:
                self._on_lost(own)
        for tell in done:
            tell()
        self._to_erase |= attempt.erased
        self._erase()

    def _erase(self) -> None:
        """What was erased goes from the log too, now or, while somebody reads there, in a moment."""
        if self._to_erase and time.monotonic() >= self._erase_at:
            try:
                self._to_erase = not self._backend.after_erasing()
            except exc.DBAPIError as error:
                _log.warning("erasing_waits", reason=str(self._backend.own_error(error)))
            self._erase_at = time.monotonic() + ERASE_AGAIN_S if self._to_erase else 0.0


def backend_of(url: str, *, sole: bool = True) -> Backend:
    """The kind of database at a URL. Raises `LocalError` CONFIG_INVALID, without the URL, which may hold a password."""
    try:
        place = make_url(url)
    except exc.ArgumentError as error:
        detail = "Expected a URL such as postgresql://user@host/name for the database."
        raise LocalError(Code.CONFIG_INVALID, detail, fix="See state.database.") from error
    kind = place.get_backend_name()
    if kind == "sqlite":
        return Sqlite(place)
    if kind in {"postgresql", "postgres"}:
        return Postgresql(place, sole=sole)
    detail = f"Expected a database of SQLite or PostgreSQL, found {kind}."
    raise LocalError(Code.CONFIG_INVALID, detail, fix="See state.database.")


def migrate_to(url: str, target: int | None) -> tuple[int | None, int]:
    """Brings a database to a schema version, by default to this program's; the versions before and after.

    Called by `fedless aggregator migrate`, while no aggregator runs. Raises `LocalError` as `Database.open`, and
    OUT_OF_RANGE for a version that there is not.
    """
    with alone(url) as connection:
        before = migrate.forward(connection) if target is None else migrate.bring(connection, target)
    return before, SCHEMA_VERSION if target is None else target


@contextmanager
def alone(url: str) -> Iterator[Connection]:
    """One transaction on a database that no aggregator works on; tables may be made and changed in it.

    Raises `LocalError` as `Database.open`.
    """
    backend = backend_of(url)
    with _own_errors(backend):
        _patiently(lambda: backend.engine.connect().close(), backend, HELD_WAIT_S)
        with backend.changing_tables() as connection:
            yield connection
        backend.engine.dispose()


@contextmanager
def one_moment(url: str) -> Iterator[Connection]:
    """A transaction for reading: all of it sees the same moment of a database that others go on writing.

    Raises `LocalError` as `Database.open`.
    """
    backend = backend_of(url, sole=False)
    with _own_errors(backend):
        with backend.snapshot() as connection:
            yield connection
        backend.engine.dispose()


@contextmanager
def _own_errors(backend: Backend) -> Iterator[None]:
    """Turns what the driver says into `LocalError`s, and closes what was opened."""
    try:
        yield
    except BaseException as error:
        backend.engine.dispose()
        own = backend.own_error(error)
        if own is error:
            raise
        raise own from error


def _prepare(backend: Backend, *, sole: bool) -> None:
    """The tables as this program knows them, and whose they are."""
    if not sole:
        with backend.engine.begin() as connection:
            migrate.check(connection)
        return
    with backend.changing_tables() as connection:
        found = migrate.forward(connection)
        backend.take_over(connection)
    if found is not None and found != SCHEMA_VERSION:
        _log.info("database_migrated", before=found, now=SCHEMA_VERSION)


def _patiently(work: Callable[[], T], backend: Backend, wait_s: float, closing: Event | None = None) -> T:
    """Does the work, again while the database is away; raises its last error after `wait_s`, or when closing.

    At the start (`closing` is None) a database that another process holds is not waited for as long as one that
    is away: that process may live on.
    """
    began, times = time.monotonic(), 0
    while True:
        try:
            result = work()
        except Exception as error:
            most_s = HELD_WAIT_S if closing is None and isinstance(error, LocalError) else wait_s
            left = min(most_s, wait_s) - (time.monotonic() - began)
            if left <= 0 or not backend.may_pass(error):
                raise
            if times == 0:
                _log.warning("database_away", reason=str(backend.own_error(error)), waits_s=round(left))
            pause = min(left, PAUSES_S[min(times, len(PAUSES_S) - 1)])
            times += 1
            if closing is None:
                time.sleep(pause)
            elif closing.wait(pause):
                raise
        else:
            if times:
                _log.info("database_back", after_ms=round(1000 * (time.monotonic() - began)))
            return result


@dataclass(frozen=True)
class _Piece:
    """What somebody wants done, and where he waits."""

    work: Callable[[Connection], Any]
    future: Future[Any]


class _Attempt:
    """One transaction of a batch, and if it has to be, once more; what to tell whom after it."""

    def __init__(self, backend: Backend, pieces: list[_Piece]) -> None:
        self._backend = backend
        self._pieces = pieces
        self._done: list[Callable[[], None]] = []
        self._mark: str | None = None
        self.erased = False

    def __call__(self) -> list[Callable[[], None]]:
        if self._mark is not None and self._backend.has_committed(self._mark):
            return self._done  # only the answer was lost
        self._mark = None
        with self._backend.engine.begin() as connection:
            self._done = [_attempt(connection, piece) for piece in self._pieces]
            self._mark = self._backend.mark(connection)
            self.erased = erasure.take(connection)
        return self._done


def _attempt(connection: Connection, piece: _Piece) -> Callable[[], None]:
    """Does one piece in a savepoint of its own, so that its failure undoes nothing of the others."""
    savepoint = connection.begin_nested()
    try:
        result = piece.work(connection)
    except Exception as error:
        if isinstance(error, exc.DatabaseError) and not isinstance(error, exc.IntegrityError | exc.DataError):
            raise  # the disk is full or worse, and SQLite may have undone everything: nobody's piece is recorded
        savepoint.rollback()
        return partial(piece.future.set_exception, error)
    savepoint.commit()
    return partial(piece.future.set_result, result)
