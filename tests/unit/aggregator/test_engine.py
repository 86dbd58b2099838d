"""Transactions commit whole or not at all; a damaged or foreign database is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError

from aggregator.store import schema
from aggregator.store.engine import Database
from fedless.protocol.errors import Code, LocalError


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'fedless.db'}"


def count_one(connection: Connection) -> None:
    connection.execute(insert(schema.counters).values(client_id="a", name="reports", count=1, last_at_ms=1))


def counted(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(schema.counters)) or 0


async def test_a_step_survives_closing(tmp_path: Path) -> None:
    database = Database.open(url(tmp_path))
    await database.run(count_one)
    database.close()
    database = Database.open(url(tmp_path))
    assert await database.run(counted) == 1
    database.close()


async def test_a_step_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def broken(connection: Connection) -> None:
        count_one(connection)
        raise KeyError

    database = Database.open(url(tmp_path))
    with pytest.raises(KeyError):
        await database.run(broken)
    assert database.run_now(counted) == 0
    database.close()


def test_sqlite_is_set_up_for_power_cuts(tmp_path: Path) -> None:
    database = Database.open(url(tmp_path))

    def pragma(name: str) -> object:
        return database.run_now(lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar())

    assert [pragma(name) for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")] == [
        "wal", 2, 1, 1,
    ]  # fmt: skip
    database.close()


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "fedless.db").write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(LocalError) as failure:
        Database.open(url(tmp_path))
    assert failure.value.code is Code.STATE_CORRUPT


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as failure:
        Database.open(url(tmp_path / "absent"))
    assert failure.value.code is Code.STATE_MISSING


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    database = Database.open(url(tmp_path))
    database.run_now(count_one)

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")  # SQLite then fails as on a full disk
        for number in range(10_000):
            connection.execute(
                insert(schema.counters).values(client_id=f"c{number}", name="x" * 64, count=1, last_at_ms=1)
            )

    with pytest.raises(LocalError) as failure:
        database.run_now(fill)
    assert failure.value.code is Code.DISK_FULL
    assert database.run_now(counted) == 1
    database.close()


def names(connection: Connection) -> list[str]:
    query = select(schema.counters.c.client_id).order_by(schema.counters.c.client_id)
    return [row.client_id for row in connection.execute(query)]


def adding(client_id: str) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        connection.execute(
            insert(schema.counters).values(client_id=client_id, name="x", count=1, last_at_ms=1)
        )

    return work


async def together(database: Database, *pieces: Callable[[Connection], object]) -> list[object]:
    """Results or errors of pieces that wait at the same time, and so share a transaction."""
    began, go_on = Event(), Event()

    def block(_connection: Connection) -> None:
        began.set()
        go_on.wait(10)

    blocking = asyncio.ensure_future(database.run(block))
    await asyncio.to_thread(began.wait, 10)
    waiting = [asyncio.ensure_future(database.run(piece)) for piece in pieces]
    await asyncio.sleep(0)
    go_on.set()
    await blocking
    return list(await asyncio.gather(*waiting, return_exceptions=True))


async def test_a_piece_that_raises_undoes_nothing_of_its_neighbours(tmp_path: Path) -> None:
    def broken(connection: Connection) -> None:
        adding("broken")(connection)
        raise KeyError

    database = Database.open(url(tmp_path))
    results = await together(database, adding("a"), broken, adding("a"), adding("b"))
    assert results[0] is results[3] is None
    assert isinstance(results[1], KeyError)
    assert isinstance(results[2], IntegrityError)
    assert database.run_now(names) == ["a", "b"]
    database.close()


async def test_nobody_is_told_that_his_piece_is_recorded_when_the_disk_is_full(tmp_path: Path) -> None:
    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")
        for number in range(10_000):
            adding(f"{number}" + "x" * 50)(connection)

    database = Database.open(url(tmp_path))
    results = await together(database, adding("a"), fill, adding("b"))
    assert [type(result) for result in results] == [LocalError] * 3
    assert database.run_now(names) == []
    database.close()


async def test_a_closed_database_says_so(tmp_path: Path) -> None:
    database = Database.open(url(tmp_path))
    database.close()
    database.close()
    with pytest.raises(RuntimeError, match="closed"):
        await database.run(names)


async def test_no_error_leaves_anybody_waiting(tmp_path: Path) -> None:
    class PowerCut(BaseException):
        pass

    def cut(_connection: Connection) -> None:
        raise PowerCut

    database = Database.open(url(tmp_path))
    with pytest.raises(PowerCut):
        await database.run(cut)
    assert database.run_now(names) == []
    database.close()
