"""SQLite: the default database, one file beside the rest of the state. One process at a time holds its directory."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine, event, exc

from aggregator import owner
from fedless.protocol.errors import Code, LocalError

BUSY_TIMEOUT = "busy_timeout=5000"
# WAL: readers do not stop the writer. FULL: a committed step survives a power cut. secure_delete: what is erased is
# overwritten. temp_store: no page is written to a file of which nobody knows.
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    BUSY_TIMEOUT,
    "secure_delete=ON",
    "temp_store=MEMORY",
)


class Sqlite:
    """A file."""

    def __init__(self, url: URL) -> None:
        if os.geteuid() == owner.ROOT and url.database:
            _leave_to_owner(Path(url.database))
        self.engine = create_engine(url)
        event.listen(self.engine, "connect", _set_up)
        event.listen(self.engine, "begin", _begin)

    @contextmanager
    def changing_tables(self) -> Iterator[Connection]:
        """A transaction without foreign keys, as a table may be dropped and made again; they are checked at its end."""
        with self.engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - the driver's
            raw.execute("PRAGMA foreign_keys=OFF")  # has no effect inside a transaction
            try:
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        raise LocalError(Code.STATE_CORRUPT, f"A row of {broken[0]} lacks its {broken[2]}.")
            finally:
                raw.execute("PRAGMA foreign_keys=ON")

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """See `Backend`."""
        with self.engine.connect() as connection:
            connection.execution_options(fedless_reads_only=True)
            with connection.begin():
                yield connection

    def take_over(self, connection: Connection) -> None:
        """Nothing: the lock of the state directory says it."""

    def own_error(self, error: BaseException) -> BaseException:
        """See `Backend`."""
        origin = error.orig if isinstance(error, exc.DatabaseError) else None
        code = getattr(origin, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return LocalError(
                Code.DISK_FULL,
                "The database cannot grow.",
                fix="Free space on the disk of the state directory.",
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

    def may_pass(self, error: BaseException) -> bool:  # noqa: ARG002 - a file is there or not
        """Never: what keeps a file from being written is told at once."""
        return False

    def after_erasing(self) -> bool:
        """Empties the write-ahead log, which holds the pages of before; False while somebody else reads in it."""
        with self.engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - the driver's
            raw.execute(
                "PRAGMA busy_timeout=100"
            )  # whoever reads may read for long, and steps wait behind this
            try:
                busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute(f"PRAGMA {BUSY_TIMEOUT}")
        return not busy

    def mark(self, connection: Connection) -> str | None:  # noqa: ARG002 - a commit here fails or is durable
        """None."""
        return None

    def has_committed(self, mark: str) -> bool:  # noqa: ARG002 - never asked, without a mark
        """Never."""
        return False


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late for reads; ours is below
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("fedless_reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _leave_to_owner(file: Path) -> None:
    """A new file for whom its folder belongs to; SQLite gives its log the owner of the file."""
    if not file.exists():
        with suppress(OSError):  # SQLite says what is wrong
            os.close(owner.create(file))
