"""A copy of the database as it is at one moment, taken while the service goes on writing. Called by `backup.py`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

from fedless.protocol.errors import Code, LocalError

BUSY_S = 30.0


def take(url: str, target: Path) -> int:
    """Copies a SQLite database into one new file; the copy's schema version.

    SQLite's online back-up reads one moment of the write-ahead log, so neither side waits for the other.
    Raises `LocalError` CONFIG_INVALID (not SQLite), STATE_MISSING or STATE_CORRUPT.
    """
    place = make_url(url)
    if place.get_backend_name() != "sqlite" or not place.database:
        detail = f"The database is {place.get_backend_name()}, which has tools of its own."
        raise LocalError(Code.CONFIG_INVALID, detail, fix="Use pg_dump, and copy the rest of the directory.")
    if not Path(place.database).is_file():
        detail = f"Expected a database at {place.database}, found none."
        raise LocalError(
            Code.STATE_MISSING, detail, fix="Start the aggregator once, or check state.directory."
        )
    source = f"file:{quote(place.database)}?mode=ro"
    try:
        with (
            closing(sqlite3.connect(source, uri=True, timeout=BUSY_S)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # the log is in the file then, and nothing beside it
            return version(copy)
    except sqlite3.Error as error:
        detail = f"The database cannot be copied: {error}."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore an older back-up.") from error


def check(path: Path) -> int:
    """The schema version of a database file that must be whole. Raises `LocalError` STATE_CORRUPT."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as copy:
            return version(copy)
    except sqlite3.Error as error:
        raise LocalError(Code.STATE_CORRUPT, f"The database cannot be read: {error}.") from error


def version(connection: sqlite3.Connection) -> int:
    """The schema version, after a look at every page. Raises `sqlite3.DatabaseError`."""
    (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        raise sqlite3.DatabaseError(said)
    try:
        row = connection.execute("SELECT version_num FROM schema_revision").fetchone()
    except sqlite3.OperationalError:  # of a database from before there were revisions
        row = connection.execute("SELECT version FROM schema_version").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("it says no schema version")
    return int(row[0])
