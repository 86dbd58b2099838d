"""What keeps the schema's revisions and its tables together; CONTRIBUTING.md says how the schema is changed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import JSON, Connection
from sqlalchemy.dialects import postgresql

from aggregator.store import migrate, tables
from aggregator.store.engine import backend_of, migrate_to
from aggregator.store.migrations.versions import r0001_first
from aggregator.store.schema import REVISIONS


def differences(connection: Connection) -> list[Any]:
    """How a database differs from the tables of the code, as Alembic says it."""
    options = {"version_table": migrate.version_table.name}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))


def lacking_revisions(url: str) -> list[Any]:
    """What no revision says of the tables: an empty database is brought through all of them, and compared."""
    backend = backend_of(url)
    with backend.changing_tables() as connection:
        r0001_first.first.create_all(connection)
    migrate_to(url, None)
    with backend.changing_tables() as connection:
        found = differences(connection)
    backend.engine.dispose()
    return found


def columns_of_plain_json() -> list[str]:
    """PostgreSQL's own JSON has no NaN: `schema.Json` has."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    columns = [column for table in tables.metadata.sorted_tables for column in table.columns]
    return [str(column) for column in columns if isinstance(column.type.dialect_impl(dialect), JSON)]


def wrong_revisions() -> list[str]:
    """Files of revisions whose number is missing, given twice, or not that of what is in them."""
    files = sorted(REVISIONS.glob("r*.py"))
    modules = [import_module(f"aggregator.store.migrations.versions.{file.stem}") for file in files]
    ids = [f"{number:04}" for number in range(len(files) + 1)]
    return [
        f"{file.name}: expected r{ids[number]}_..., revision {ids[number]!r} after {ids[number - 1]!r}"
        for number, (file, module) in enumerate(zip(files, modules, strict=True), 1)
        if (file.name[1:5], module.revision, module.down_revision or "0000")
        != (ids[number], ids[number], ids[number - 1])
    ]
