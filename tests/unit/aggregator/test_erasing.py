"""Shares that were erased are in none of SQLite's files: searched for byte by byte."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from aggregator.members import Terms
from aggregator.round import Round
from aggregator.store import masks, rounds, runs
from aggregator.store.engine import Database
from aggregator.store.masks import KeyEpoch
from aggregator.store.records import RunRecord, RunState
from fedless.protocol.messages import Kind, Mode
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_fleet import Fleet, unit_words

SECRET = bytes(range(1, 33)) * 20
EPOCH = KeyEpoch(
    1, "run", {"client-1": bytes(16)}, 4, 1_000, 61_000, 121_000, ServerEpoch(1, 2, Trust.CHEATING)
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path / 'fedless.db'}")
    record = RunRecord("run", "", b"", bytes(32), b"", RunState.RUNNING)
    opened.run_now(lambda c: runs.insert_run(c, record, "run", 1, 0))
    opened.run_now(lambda c: masks.insert_epoch(c, EPOCH))
    yield opened
    opened.close()


def files_with(secret: bytes, folder: Path) -> list[str]:
    """Names of the files that hold it, or the first 24 bytes of it: a value may be cut by a page's end."""
    return sorted(
        file.name for file in folder.iterdir() if file.is_file() and secret[:24] in file.read_bytes()
    )


def until(gone: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not gone():
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.05)


def keep_secret(database: Database) -> None:
    row = {"epoch": 1, "member": 1, "shares": SECRET}
    database.run_now(lambda c: c.execute(insert(masks.epoch_shares).values(row)).rowcount)


def test_sealed_shares_of_a_key_epoch_that_ended_are_in_no_file(database: Database, tmp_path: Path) -> None:
    keep_secret(database)
    assert files_with(SECRET, tmp_path), "the search would find them"
    database.run_now(lambda c: masks.end_epoch(c, EPOCH, "used up", 5_000))
    until(lambda: not files_with(SECRET, tmp_path))


def revealed(database: Database) -> tuple[ServerRound, list[bytes]]:
    """A masked round in the database whose holders have answered, ended; and the shares that they revealed."""
    fleet = Fleet(4).set_up()
    round_ = fleet.open(round_id=7, epoch=1)
    for index in fleet.everyone:
        round_ = fleet.report(round_, index, unit_words(round_.open.encoding, index))
    closed = fleet.close(round_)
    for index in (1, 2, 3):
        closed = fleet.respond(closed, index)
    ended, _, _ = fleet.unmask(closed)
    terms = Terms(7, "run", 1, Kind.TRAIN, 0, 4, 3, 0, 1, 5, 100, mode=Mode.PAIRWISE)
    database.run_now(lambda c: rounds.insert_round(c, Round(terms)))
    database.run_now(lambda c: masks.insert_masked(c, closed))
    return ended, [answer.shares for answer in closed.responses]


def test_revealed_shares_of_a_round_that_ended_are_in_no_file(database: Database, tmp_path: Path) -> None:
    ended, shares = revealed(database)
    assert all(len(each) >= 24 and files_with(each, tmp_path) for each in shares)
    assert database.run_now(lambda c: masks.save_masked(c, ended))
    until(lambda: not any(files_with(each, tmp_path) for each in shares))


def test_somebody_who_reads_delays_it_and_does_not_prevent_it(database: Database, tmp_path: Path) -> None:
    """A back-up, for instance: the log cannot be emptied before its end, and nobody waits for it."""
    keep_secret(database)
    with closing(sqlite3.connect(tmp_path / "fedless.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM epoch_shares").fetchone()
        database.run_now(lambda c: masks.end_epoch(c, EPOCH, "used up", 5_000))
        assert database.run_now(lambda c: masks.load_epoch(c, 1)) == replace(
            EPOCH, reason="used up", ended_at_ms=5_000
        )
        assert files_with(SECRET, tmp_path)
        reader.rollback()
    until(lambda: not files_with(SECRET, tmp_path))


def test_kill_between_erasing_and_emptying_the_log_is_made_up_for(tmp_path: Path) -> None:
    """The log as a killed process leaves it, with the pages of before."""
    folder, left = tmp_path / "live", tmp_path / "left"
    folder.mkdir()
    left.mkdir()
    database = Database.open(f"sqlite:///{folder / 'fedless.db'}")
    record = RunRecord("run", "", b"", bytes(32), b"", RunState.RUNNING)
    database.run_now(lambda c: runs.insert_run(c, record, "run", 1, 0))
    database.run_now(lambda c: masks.insert_epoch(c, EPOCH))
    with closing(sqlite3.connect(folder / "fedless.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM epoch_shares").fetchone()
        keep_secret(database)
        database.run_now(lambda c: masks.end_epoch(c, EPOCH, "used up", 5_000))
        for file in folder.iterdir():
            (left / file.name).write_bytes(file.read_bytes())
    database.close()
    assert "fedless.db-wal" in files_with(SECRET, left)
    again = Database.open(f"sqlite:///{left / 'fedless.db'}")
    again.run_now(lambda c: masks.load_epoch(c, 1))
    until(lambda: not files_with(SECRET, left))
    again.close()
