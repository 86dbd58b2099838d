"""One moment of the database as a SQLite file, taken while the service goes on writing, and a database made of one.

The file is the same whatever the database was, so it moves a fleet from one kind to the other. Called by `backup.py`
and `restore.py`.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, create_engine, insert, make_url, select

from aggregator.store import migrate, retention
from aggregator.store.engine import alone, one_moment
from aggregator.store.schema import SCHEMA_VERSION, owner
from aggregator.store.transfer import OnRows, copy_rows
from fedless.protocol.errors import Code, LocalError

BUSY_S = 30.0


def take(url: str, target: Path, on_rows: OnRows = lambda _count: None) -> int:
    """Copies a database into one new SQLite file; the copy's schema version.

    SQLite's online back-up reads one moment of the write-ahead log, and PostgreSQL's rows are read in one REPEATABLE
    READ transaction: in neither does one side wait for the other. Raises `LocalError` CONFIG_INVALID, STATE_MISSING,
    STATE_CORRUPT, STORE_UNREACHABLE, or WRONG_STATE (a PostgreSQL database of another schema version).
    """
    place = make_url(url)
    if place.get_backend_name() != "sqlite" or not place.database:
        with one_moment(url) as source, alone(file_url(target)) as copy:
            migrate.check(source)
            migrate.forward(copy)
            copy_rows(source, copy, on_rows)
    elif not Path(place.database).is_file():
        detail = f"Expected a database at {place.database}, found none."
        raise LocalError(
            Code.STATE_MISSING, detail, fix="Start the aggregator once, or check state.directory."
        )
    else:
        _copy_pages(place.database, target)
    return _alone_in_its_file(target)


def put(file: Path, url: str, mark: str, on_rows: OnRows = lambda _count: None) -> bool:
    """Fills an empty database with all rows of a file that `take` made, in one transaction.

    `mark` (up to 64 characters) stays in it until an aggregator works on it: done again with the same mark, it is
    left as it is. Returns whether it was empty. Raises `LocalError` STATE_EXISTS if there is anything else in it,
    STATE_LOCKED, WRONG_STATE, STATE_CORRUPT, STORE_UNREACHABLE, DISK_FULL or CONFIG_INVALID.
    """
    with alone(file_url(file)) as source, alone(url) as target:
        migrate.check(source)
        if migrate.version(target) is not None:
            if target.scalar(select(owner.c.name)) == mark:
                return False
            detail = "Expected an empty database, found the tables of a fleet in it."
            raise LocalError(Code.STATE_EXISTS, detail, fix="Make a new database for this fleet.")
        migrate.forward(target)
        copy_rows(source, target, on_rows)
        target.execute(insert(owner).values(place=1, generation=1, name=mark))
    return True


def needed(file: Path, now_ms: int) -> set[bytes] | None:
    """Digests of the blobs that a copy's rows name; None if it is of another schema version than this program's."""
    with closing(sqlite3.connect(_read_only(file), uri=True)) as copy:
        if version(copy) != SCHEMA_VERSION:
            return None
    engine = create_engine(
        URL.create("sqlite", database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})
    )
    try:
        with engine.connect() as connection:
            return retention.needed(connection, now_ms + retention.EXPORT_MS)
    finally:
        engine.dispose()


def file_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def check(path: Path) -> int:
    """The schema version of a database file that must be whole. Raises `LocalError` STATE_CORRUPT."""
    try:
        with closing(sqlite3.connect(_read_only(path), uri=True)) as copy:
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


def _copy_pages(database: str, target: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(_read_only(Path(database)), uri=True, timeout=BUSY_S)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)
    except sqlite3.Error as error:
        detail = f"The database cannot be copied: {error}."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore an older back-up.") from error


def _alone_in_its_file(target: Path) -> int:
    """Its schema version; the log is in the file then, and nothing beside it."""
    try:
        with closing(sqlite3.connect(target)) as copy:
            copy.execute("PRAGMA journal_mode=DELETE")
            return version(copy)
    except sqlite3.Error as error:
        detail = f"The copy of the database cannot be read: {error}."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore an older back-up.") from error


def _read_only(path: Path) -> str:
    return f"file:{quote(str(path))}?mode=ro"
