"""The helper's memory in a directory of its own: closed rounds, used seeds, who was summed over which model; calls.

SQLite with a full sync at every commit: what is answered was recorded before. One process at a time holds the
directory; one thread at a time uses the connection. Only hashes of seeds are kept, and a seed for the noise of
each closed round, so that a repeat gets the same answer.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from fedless.helper.remembering import Remembered, same_set
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.secagg.helper import Closed, Closing, RefusedReports, repeats

SCHEMA = """
CREATE TABLE IF NOT EXISTS closed (
    context BLOB PRIMARY KEY, set_digest BLOB NOT NULL, noise_seed BLOB NOT NULL, closed_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seeds (mark BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (
    model BLOB NOT NULL, client_id TEXT NOT NULL, PRIMARY KEY (model, client_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (id BLOB PRIMARY KEY, expires_at_ms INTEGER NOT NULL) WITHOUT ROWID;
"""
_PARAMETERS = 500
T = TypeVar("T")


class Memory:
    """`Remembering` in a state directory, held by this process until `close`."""

    def __init__(self, directory: Path) -> None:
        """Open or make it. Raises `LocalError` STATE_LOCKED, STATE_MISSING or STATE_CORRUPT."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(Code.STATE_MISSING, f"{error}.", fix="Check state.directory.") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_file)
            detail = f"Another helper holds {directory}."
            raise LocalError(Code.STATE_LOCKED, detail, fix="Stop it first.") from error
        self._thread_lock = threading.Lock()
        self._connection = self._open(directory / "helper.db")

    def _open(self, path: Path) -> sqlite3.Connection:
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            connection.close()
            os.close(self._lock_file)
            detail = f"{path}: {error}. Without it an earlier round could be closed again."
            raise LocalError(
                Code.STATE_CORRUPT, detail, fix="Restore it, or make a new helper key."
            ) from error
        return connection

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        with self._thread_lock:
            self._connection.close()
            os.close(self._lock_file)

    def remembered(self, context: bytes) -> Remembered | None:
        """See `Remembering`."""
        with self._transaction() as connection:
            return self._remembered(connection, context)

    def record(self, closing: Closing, noise_seed: bytes, at_ms: int) -> Closed | RefusedReports:
        """See `Remembering`."""
        with self._transaction() as connection:
            known = self._remembered(connection, closing.context)
            if known is not None:
                return same_set(known.closed, closing)
            refused = repeats(closing, self._used(connection, closing), self._counted(connection, closing))
            if refused is not None:
                return refused
            closed = Closed(closing.set_digest, noise_seed)
            row = (closing.context, closed.set_digest, noise_seed, at_ms)
            connection.execute("INSERT INTO closed VALUES (?, ?, ?, ?)", row)
            connection.executemany("INSERT INTO seeds VALUES (?)", [(mark,) for mark in closing.seed_marks])
            counted = [(closing.model_mark, client_id) for client_id in closing.client_ids]
            connection.executemany("INSERT INTO counted VALUES (?, ?)", counted)
            return closed

    def take_call(self, call_id: bytes, expires_at_ms: int, now_ms: int) -> bool:
        """See `Remembering`."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM calls WHERE expires_at_ms < ?", (now_ms,))
            taken = connection.execute("INSERT OR IGNORE INTO calls VALUES (?, ?)", (call_id, expires_at_ms))
            return taken.rowcount == 1

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._thread_lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @staticmethod
    def _remembered(connection: sqlite3.Connection, context: bytes) -> Remembered | None:
        query = "SELECT set_digest, noise_seed, closed_at_ms FROM closed WHERE context = ?"
        row = connection.execute(query, (context,)).fetchone()
        return None if row is None else Remembered(Closed(row[0], row[1]), row[2])

    @staticmethod
    def _used(connection: sqlite3.Connection, closing: Closing) -> frozenset[bytes]:
        found: set[bytes] = set()
        for part in _parts(closing.seed_marks):
            query = f"SELECT mark FROM seeds WHERE mark IN ({_marks(part)})"  # noqa: S608 - question marks only
            found |= {row[0] for row in connection.execute(query, part)}
        return frozenset(found)

    @staticmethod
    def _counted(connection: sqlite3.Connection, closing: Closing) -> frozenset[str]:
        found: set[str] = set()
        for part in _parts(closing.client_ids):
            query = f"SELECT client_id FROM counted WHERE model = ? AND client_id IN ({_marks(part)})"  # noqa: S608
            found |= {row[0] for row in connection.execute(query, (closing.model_mark, *part))}
        return frozenset(found)


def _parts(values: tuple[T, ...]) -> Iterable[tuple[T, ...]]:
    """Slices that SQLite takes as parameters of one statement."""
    return (values[at : at + _PARAMETERS] for at in range(0, len(values), _PARAMETERS))


def _marks(part: tuple[object, ...]) -> str:
    return ", ".join("?" * len(part))
