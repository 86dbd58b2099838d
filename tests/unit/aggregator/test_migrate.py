"""The schema goes forward and back without loss, on both databases; a newer or foreign database is refused."""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, create_engine, func, insert, select, text, update

import aggregator.store
from aggregator.store import migrate, tables
from aggregator.store.engine import Database, backend_of, migrate_to
from aggregator.store.migrations.versions import r0001_first
from aggregator.store.schema import SCHEMA_VERSION
from fedless.protocol.errors import Code, LocalError
from tests.schema import differences

OLD = Path(__file__).with_name("schema_1.sql")
Connect = Callable[[Callable[[Connection], Any]], Any]
Rows = dict[str, list[dict[str, Any]]]


def sqlite_url(request: pytest.FixtureRequest, folder: Path) -> str:
    return f"sqlite:///{folder / 'fedless.db'}"


def postgresql_url(request: pytest.FixtureRequest, folder: Path) -> str:
    return str(request.getfixturevalue("postgresql").url())


@pytest.fixture(params=[sqlite_url, postgresql_url], ids=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found: str = request.param(request, tmp_path)
    return found


@pytest.fixture
def connect(url: str) -> Connect:
    """Gives a function that does something in one transaction."""

    def do(work: Callable[[Connection], Any]) -> Any:
        backend = backend_of(url)
        with backend.changing_tables() as connection:
            result = work(connection)
        backend.engine.dispose()
        return result

    return do


def of_schema_1(folder: Path) -> Rows:
    """What a database of the first version held, read by the tables of that day."""
    file = folder / "old.db"
    with closing(sqlite3.connect(file)) as raw:
        raw.executescript(OLD.read_text("utf-8"))
    engine = create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        found = contents(connection, r0001_first.first)
    engine.dispose()
    return found


def contents(connection: Connection, metadata: MetaData) -> Rows:
    """All rows by table, in the order of their first key."""
    found: Rows = {}
    for table in metadata.sorted_tables:
        rows = connection.execute(select(table).order_by(*table.columns[:3])).mappings()
        found[table.name] = [dict(row) for row in rows]
    return found


def fill(rows: Rows) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        r0001_first.first.create_all(connection)
        for table in r0001_first.first.sorted_tables:
            if rows[table.name]:
                connection.execute(insert(table), rows[table.name])

    return work


def test_an_old_database_goes_forward_and_back_without_loss(
    url: str, connect: Connect, tmp_path: Path
) -> None:
    old = of_schema_1(tmp_path)
    assert all(old.values()), "each table of the fixture has rows"
    connect(fill(old))
    assert migrate_to(url, None) == (1, SCHEMA_VERSION)
    assert connect(differences) == []
    now = connect(lambda c: contents(c, tables.metadata))
    for name, rows in old.items():
        kept = [{key: line[key] for key in rows[0] if key in line} for line in now.get(name, ())]
        assert name not in now or kept == [{k: line[k] for k in kept[0]} for line in rows], name
    assert migrate_to(url, 1) == (SCHEMA_VERSION, 1)
    assert connect(lambda c: contents(c, r0001_first.first)) == old
    assert migrate_to(url, None) == (1, SCHEMA_VERSION)
    assert connect(lambda c: contents(c, tables.metadata)) == now


def test_each_revision_goes_one_step_forward_and_back(url: str, connect: Connect) -> None:
    connect(r0001_first.first.create_all)
    for target in [*range(2, SCHEMA_VERSION + 1), *range(SCHEMA_VERSION - 1, 0, -1)]:
        migrate_to(url, target)
        assert connect(migrate.version) == target


def test_a_new_database_has_all_tables_at_once(url: str, connect: Connect) -> None:
    Database.open(url).close()
    assert connect(migrate.version) == SCHEMA_VERSION
    assert connect(differences) == []


def test_the_aggregator_brings_an_old_database_up_to_date(url: str, connect: Connect, tmp_path: Path) -> None:
    connect(fill(of_schema_1(tmp_path)))
    database = Database.open(url)
    assert database.run_now(migrate.version) == SCHEMA_VERSION
    database.close()


def test_a_failed_migration_changes_nothing(url: str, connect: Connect, tmp_path: Path) -> None:
    """It is one transaction: what was done before the failure is undone with it."""
    connect(fill(of_schema_1(tmp_path)))
    connect(lambda c: c.execute(text("CREATE TABLE owner (place INTEGER)")))  # in the way of revision 2
    with pytest.raises(Exception, match="owner"):
        migrate_to(url, None)
    assert connect(migrate.version) == 1
    assert not connect(lambda c: c.dialect.has_table(c, migrate.version_table.name))


def test_a_newer_database_is_refused(url: str, connect: Connect) -> None:
    Database.open(url).close()
    newer = update(migrate.version_table).values(version_num=f"{SCHEMA_VERSION + 1:04}")
    connect(lambda c: c.execute(newer))
    for use in (Database.open, lambda url: migrate_to(url, 1), lambda url: Database.open(url, sole=False)):
        with pytest.raises(LocalError, match=f"found {SCHEMA_VERSION + 1}: a newer program") as refusal:
            use(url)
        assert refusal.value.code is Code.WRONG_STATE


def test_another_programs_database_is_refused(url: str, connect: Connect) -> None:
    connect(lambda c: c.execute(text("CREATE TABLE invoices (number INTEGER)")))
    with pytest.raises(LocalError, match="another program: invoices"):
        Database.open(url)
    assert connect(lambda c: c.scalar(select(func.count()).select_from(text("invoices")))) == 0


def test_a_look_migrates_nothing(url: str, connect: Connect, tmp_path: Path) -> None:
    connect(fill(of_schema_1(tmp_path)))
    with pytest.raises(LocalError, match="found 1"):
        Database.open(url, sole=False)
    assert connect(migrate.version) == 1


def test_a_version_that_there_is_not_is_refused(url: str) -> None:
    with pytest.raises(LocalError, match="empty"):
        migrate_to(url, 1)
    Database.open(url).close()
    for target in (0, SCHEMA_VERSION + 1):
        with pytest.raises(LocalError, match=f"from 1 to {SCHEMA_VERSION}, found {target}"):
            migrate_to(url, target)


def test_every_module_with_tables_is_named() -> None:
    """Else a table would be made or not by what else is imported."""
    named = set(tables.metadata.tables)
    for module in pkgutil.iter_modules(aggregator.store.__path__, "aggregator.store."):
        importlib.import_module(module.name)
    assert set(tables.metadata.tables) == named
