"""Brings a database to the schema of this program, or to another revision; whole or not at all, in one transaction.

Called when the aggregator opens its database (forward only) and by `fedless aggregator migrate`. A new database gets
all tables at once; any other one goes through the revisions in `migrations`. One that is newer than this program is
refused: going back is for the program that knows how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    select,
)

from aggregator.store.schema import SCHEMA_VERSION
from aggregator.store.tables import metadata
from fedless.protocol.errors import Code, LocalError

FIRST = 1  # the revision of databases from before there was Alembic's table
BEFORE = "schema_version"
PLACE = Path(__file__).parent / "migrations"

_numbers = MetaData()
# As Alembic makes it.
version_table = Table(
    "schema_revision",
    _numbers,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="schema_revision_pkc"),
)


def version(connection: Connection) -> int | None:
    """The number of the revision that a database has; None for an empty one. Raises `LocalError` WRONG_STATE."""
    names = set(inspect(connection).get_table_names())
    if version_table.name in names:
        found: str | None = connection.scalar(select(version_table.c.version_num))
        names.discard(version_table.name)
        if found is not None:
            return _number(found)
    if BEFORE in names:
        return FIRST
    if names:
        detail = f"The database holds tables of another program: {min(names)[:64]}."
        raise LocalError(Code.WRONG_STATE, detail, fix="Give the fleet a database of its own.")
    return None


def forward(connection: Connection) -> int | None:
    """Makes the tables, or brings them up to date; the version that was there, None for an empty database.

    Raises `LocalError` WRONG_STATE for a database that a newer program made.
    """
    found = version(connection)
    if found is None:
        metadata.create_all(connection)
        _stamp(connection, SCHEMA_VERSION)
    elif found > SCHEMA_VERSION:
        raise _newer(found)
    elif found < SCHEMA_VERSION:
        _adopt(connection)
        _alembic(connection, "upgrade", SCHEMA_VERSION)
    return found


def bring(connection: Connection, target: int) -> int:
    """Goes to a revision, forward or back; what only later ones hold is lost on the way back. The version before.

    Raises `LocalError` WRONG_STATE (an empty database, or a newer program's) or OUT_OF_RANGE (no such revision).
    """
    found = version(connection)
    if found is None:
        raise LocalError(Code.WRONG_STATE, "The database is empty.", fix="Start the aggregator once.")
    if found > SCHEMA_VERSION:
        raise _newer(found)
    if not FIRST <= target <= SCHEMA_VERSION:
        detail = f"Expected a schema version from {FIRST} to {SCHEMA_VERSION}, found {target}."
        raise LocalError(Code.OUT_OF_RANGE, detail)
    _adopt(connection)
    if target != found:
        _alembic(connection, "upgrade" if target > found else "downgrade", target)
    return found


def check(connection: Connection) -> None:
    """For programs that only look: raises `LocalError` WRONG_STATE unless the schema is this program's."""
    found = version(connection)
    if found != SCHEMA_VERSION:
        if found is not None and found > SCHEMA_VERSION:
            raise _newer(found)
        detail = f"Expected a database of schema version {SCHEMA_VERSION}, found {found or 'an empty one'}."
        raise LocalError(Code.WRONG_STATE, detail, fix="Start the aggregator of this version first.")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        detail = f"Expected a schema version, found {text[:32]!r}."
        raise LocalError(Code.WRONG_STATE, detail, fix="Use the version of fedless that made it.") from None


def _newer(found: int) -> LocalError:
    detail = f"Expected a database of schema version {SCHEMA_VERSION} at most, found {found}: a newer program made it."
    return LocalError(
        Code.WRONG_STATE, detail,
        fix="Use that version of fedless, or go back with its `fedless aggregator migrate --to`.",
    )  # fmt: skip


def _adopt(connection: Connection) -> None:
    """Gives a database from before Alembic its table."""
    if not inspect(connection).has_table(version_table.name):
        _stamp(connection, FIRST)


def _stamp(connection: Connection, number: int) -> None:
    version_table.create(connection, checkfirst=True)
    connection.execute(insert(version_table).values(version_num=f"{number:04}"))


def _alembic(connection: Connection, way: str, target: int) -> None:
    from alembic import command  # noqa: PLC0415 - 0.2 s that only an old database needs
    from alembic.config import Config  # noqa: PLC0415

    attributes: dict[str, Any] = {"connection": connection, "version_table": version_table.name}
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(PLACE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    getattr(command, way)(config, f"{target:04}")
