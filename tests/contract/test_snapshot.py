"""Copies of the database, from each kind into each kind: every row of every table, one moment, bounded, all or nothing.

Tables are filled by their columns, so a table that is added is tested here without anybody thinking of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    String,
    delete,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError

from aggregator.store import orders, snapshot, transfer
from aggregator.store.engine import Database, one_moment
from aggregator.store.schema import SCHEMA_VERSION, counters, owner
from aggregator.store.tables import metadata
from fedless.protocol.errors import Code, LocalError

KINDS = ("sqlite", "postgresql")
ROWS = 3
MARK = "restored from 0123"
Everything = dict[str, list[dict[str, Any]]]


def new_url(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder / 'fedless.db'}"
    return str(request.getfixturevalue("postgresql").url())


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "source"
    folder.mkdir()
    return new_url(request.param, request, folder)


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "target"
    folder.mkdir()
    return new_url(request.param, request, folder)


@pytest.fixture
def source(url: str) -> Iterator[Database]:
    opened = Database.open(url)
    opened.run_now(fill)
    yield opened
    opened.close()


@pytest.fixture
def file(source: Database, url: str, tmp_path: Path) -> Path:
    assert source.run_now(everything)
    snapshot.take(url, tmp_path / "copy.db")
    return tmp_path / "copy.db"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of a fleet in SQLite."""
    url = f"sqlite:///{tmp_path / 'plain.db'}"
    database = Database.open(url)
    try:
        database.run_now(fill)
    finally:
        database.close()
    snapshot.take(url, tmp_path / "copy.db")
    return tmp_path / "copy.db"


def value(column: Column[Any], number: int) -> object:
    """The same for a column and for what it refers to."""
    while column.foreign_keys:
        column = next(iter(column.foreign_keys)).column
    name = f"{column.table.name}.{column.name} {number}"
    length = getattr(column.type, "length", None)
    made = {
        JSON: {"loss": float("inf"), "text": 'é"\n', "list": [1, None, {"a": number}]},
        LargeBinary: name.encode()[-length:] if length else bytes(range(256)) + name.encode(),
        Boolean: number % 2 == 0,
        Float: number + 0.1,
        BigInteger: 2**62 + number,
        Integer: number,
        String: f"{name} é"[-(length or 999) :],
    }
    return next(made[kind] for kind in made if isinstance(column.type, kind))


def fill(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        if table is not owner:
            for number in range(ROWS):
                row = {column.key: value(column, number) for column in table.columns}
                connection.execute(insert(table).values(row))


def everything(connection: Connection) -> Everything:
    found = {
        table.name: [dict(row._mapping) for row in connection.execute(select(table))]
        for table in metadata.sorted_tables
        if table is not owner
    }
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def content(url: str) -> Everything:
    database = Database.open(url)
    try:
        return database.run_now(everything)
    finally:
        database.close()


def refused(file: Path, url: str) -> LocalError:
    with pytest.raises(LocalError) as caught:
        snapshot.put(file, url, MARK)
    return caught.value


def test_every_row_of_every_table_comes_through(source: Database, file: Path, empty: str) -> None:
    before = source.run_now(everything)
    assert {len(rows) for rows in before.values()} == {ROWS}
    assert snapshot.put(file, empty, MARK)
    assert content(empty) == before


def test_copy_is_one_file_and_says_its_schema(plain: Path) -> None:
    assert snapshot.check(plain) == SCHEMA_VERSION
    assert [path.name for path in plain.parent.glob("copy.db*")] == ["copy.db"]


def test_a_moment_stays_the_same_while_others_write(source: Database, url: str) -> None:
    """Nobody waits for it; PostgreSQL would refuse to write in it."""
    with one_moment(url) as connection:
        before = everything(connection)
        assert source.run_now(lambda c: c.execute(delete(counters)).rowcount) == ROWS
        assert everything(connection) == before
        if connection.dialect.name == "postgresql":
            with pytest.raises(DBAPIError, match="read-only"):
                connection.execute(delete(counters))
    assert source.run_now(everything)["counters"] == []


def test_rows_that_come_while_it_is_copied_are_not_in_the_copy(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = new_url("postgresql", request, tmp_path)
    live = Database.open(url)
    try:
        live.run_now(fill)
        before = live.run_now(everything)
        heard: list[int] = []

        def write_more(count: int) -> None:
            heard.append(count)
            row = {"client_id": f"late-{count}", "name": "late", "count": 1, "last_at_ms": 1}
            live.run_now(lambda c: c.execute(insert(counters).values(row)).rowcount)

        snapshot.take(url, tmp_path / "copy.db", write_more)
        assert heard == [ROWS * number for number in range(1, len(before) + 1)]
        assert len(live.run_now(everything)["counters"]) == ROWS + len(heard)
    finally:
        live.close()
    assert content(snapshot.file_url(tmp_path / "copy.db")) == before


def test_large_rows_come_one_by_one(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """So that memory is bounded by one of them."""
    url = new_url("postgresql", request, tmp_path)
    live, heard = Database.open(url), list[int]()
    try:
        live.run_now(fill)
        large = {"body": bytes(transfer.BATCH_BYTES)}
        live.run_now(lambda c: c.execute(orders.orders.update().values(large)).rowcount)
        snapshot.take(url, tmp_path / "copy.db", heard.append)
    finally:
        live.close()
    steps = {after - before for before, after in pairwise(heard)}
    assert steps == {1, ROWS}
    found = content(snapshot.file_url(tmp_path / "copy.db"))["orders"]
    assert [row["body"] for row in found] == [bytes(transfer.BATCH_BYTES)] * ROWS


def test_database_that_is_not_empty_is_not_filled(plain: Path, empty: str) -> None:
    Database.open(empty).close()
    assert refused(plain, empty).code is Code.STATE_EXISTS
    assert {len(rows) for rows in content(empty).values()} == {0}


def test_filling_again_changes_nothing_until_somebody_works_on_it(plain: Path, empty: str) -> None:
    before = content(snapshot.file_url(plain))
    assert snapshot.put(plain, empty, MARK)
    assert not snapshot.put(plain, empty, MARK)
    with pytest.raises(LocalError) as caught:
        snapshot.put(plain, empty, "restored from another")
    assert caught.value.code is Code.STATE_EXISTS
    assert content(empty) == before  # an aggregator has opened it
    if empty.startswith("postgresql"):
        assert refused(plain, empty).code is Code.STATE_EXISTS


def test_database_that_an_aggregator_works_on_is_not_filled(
    request: pytest.FixtureRequest, plain: Path, tmp_path: Path
) -> None:
    url = new_url("postgresql", request, tmp_path)
    live = Database.open(url)
    try:
        assert refused(plain, url).code is Code.STATE_LOCKED
    finally:
        live.close()


def test_tables_of_another_program_are_left_alone(plain: Path, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("postgresql")
    url = server.url()
    name = url.partition("@/")[2].partition("?")[0]
    server.execute("CREATE TABLE accounts (id integer)", name)
    assert refused(plain, url).code is Code.WRONG_STATE
    assert server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(1,)]


def test_value_that_the_other_database_cannot_hold_leaves_it_empty(
    request: pytest.FixtureRequest, plain: Path
) -> None:
    """PostgreSQL has no text with a NUL in it."""
    server = request.getfixturevalue("postgresql")
    url = server.url()
    with sqlite3.connect(plain) as damaged:
        damaged.execute("UPDATE counters SET name = 'a' || char(0)")
    damaged.close()
    error = refused(plain, url)
    assert error.code is Code.STATE_CORRUPT
    assert "counters" in error.detail
    name = url.partition("@/")[2].partition("?")[0]
    assert server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(0,)]


def test_older_postgresql_is_brought_up_to_date_first(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server = request.getfixturevalue("postgresql")
    url = server.url()
    Database.open(url).close()
    name = url.partition("@/")[2].partition("?")[0]
    server.execute("UPDATE schema_revision SET version_num = '0001'", name)
    with pytest.raises(LocalError) as caught:
        snapshot.take(url, tmp_path / "copy.db")
    assert caught.value.code is Code.WRONG_STATE
    assert "Start the aggregator" in caught.value.fix


def test_no_table_counts_its_rows_itself() -> None:
    """A sequence in PostgreSQL would begin at 1 after its rows were copied."""
    counting = [t.name for t in metadata.sorted_tables if t.autoincrement_column is not None]
    assert counting == []
