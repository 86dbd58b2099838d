"""What the database keeps of key epochs and masked rounds, and what it does not take back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator import events as e
from aggregator.epochs import ticket_terms
from aggregator.members import Member, Stage, Terms
from aggregator.round import Round
from aggregator.store import masks, rounds, runs
from aggregator.store.engine import Database
from aggregator.store.masks import KeyEpoch
from aggregator.store.records import RunRecord, RunState
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind, Mode
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.messages import EpochShares
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_fleet import Fleet, unit_words

WINDOW = 60_000
EMPTY = ServerEpoch(100, 2, Trust.CHEATING)
EPOCH = KeyEpoch(100, "run", {"client-1": bytes(16)}, 8, 1_000, 61_000, 121_000, EMPTY)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path / 'fedless.db'}")
    record = RunRecord("run", "", b"", bytes(32), b"", RunState.RUNNING)
    opened.run_now(lambda c: runs.insert_run(c, record, "run", 1, 0))
    opened.run_now(lambda c: masks.insert_epoch(c, EPOCH))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def opened_round() -> tuple[Fleet, ServerRound]:
    fleet = Fleet(4).set_up()
    return fleet, fleet.open(round_id=7, epoch=1)


def put(database: Database, fleet: Fleet, round_: ServerRound) -> None:
    epoch = replace(EPOCH, epoch=1, state=fleet.server)
    terms = Terms(7, "run", 1, Kind.TRAIN, 0, 4, 3, 0, 1, 5, 100, mode=Mode.PAIRWISE)
    database.run_now(lambda c: masks.insert_epoch(c, epoch))
    database.run_now(lambda c: rounds.insert_round(c, Round(terms)))
    database.run_now(lambda c: masks.insert_masked(c, round_))


def test_key_epoch_is_what_it_was(database: Database) -> None:
    assert database.run_now(lambda c: masks.load_epoch(c, 100)) == EPOCH
    assert database.run_now(lambda c: masks.open_epochs(c, "run")) == [EPOCH]
    assert database.run_now(lambda c: masks.open_epochs(c, "another")) == []


def test_unknown_key_epoch_is_refused_by_name(database: Database) -> None:
    with pytest.raises(PeerError) as refusal:
        database.run_now(lambda c: masks.load_epoch(c, 5))
    assert refusal.value.code is Code.UNKNOWN_ROUND


def test_key_epoch_that_has_ended_stays_ended(database: Database) -> None:
    """A step that crosses the end (a stop of the run) does not write the key epoch back to life."""
    database.run_now(lambda c: masks.insert_shares(c, EpochShares(100, 1, ())))
    database.run_now(lambda c: masks.end_all(c, "run", "stopped", 5_000))
    assert not database.run_now(lambda c: masks.save_epoch(c, replace(EPOCH, state=replace(EMPTY, slots=1))))
    found = database.run_now(lambda c: masks.load_epoch(c, 100))
    assert found == replace(EPOCH, reason="stopped", ended_at_ms=5_000)
    assert database.run_now(lambda c: masks.load_shares(c, 100)) == {}
    database.run_now(lambda c: masks.end_epoch(c, EPOCH, "once more", 6_000))
    assert database.run_now(lambda c: masks.load_epoch(c, 100)).reason == "stopped"


def test_numbers_of_rounds_and_key_epochs_differ_and_rise(database: Database) -> None:
    assert database.run_now(lambda c: rounds.next_id(c, 1_000)) == 101
    assert database.run_now(lambda c: rounds.next_id(c, 2_000_000)) == 2_000


def test_answer_that_crosses_the_commit_brings_no_share_back(
    database: Database, opened_round: tuple[Fleet, ServerRound]
) -> None:
    fleet, round_ = opened_round
    for index in fleet.everyone:
        round_ = fleet.report(round_, index, unit_words(round_.open.encoding, index))
    closed = fleet.close(round_)
    for index in (1, 2, 3):
        closed = fleet.respond(closed, index)
    late = fleet.respond(closed, 4)
    ended, _, _ = fleet.unmask(closed)
    put(database, fleet, closed)
    assert database.run_now(lambda c: masks.load_masked(c, 7)) == [closed]
    assert database.run_now(lambda c: masks.save_masked(c, ended))
    assert not database.run_now(lambda c: masks.save_masked(c, late))
    [found] = database.run_now(lambda c: masks.load_masked(c, 7))
    assert found.result == ended.result
    assert [(answer.index, answer.shares) for answer in found.responses] == [(1, b""), (2, b""), (3, b"")]


def test_only_abandoned_rounds_without_an_end_are_to_be_settled(
    database: Database, opened_round: tuple[Fleet, ServerRound]
) -> None:
    put(database, *opened_round)
    assert database.run_now(lambda c: masks.unsettled(c, "run")) == []
    round_ = database.run_now(lambda c: rounds.load(c, 7))
    round_.put(Member("client-1", bytes(16), Stage.LOST))
    round_.handle(e.RoundStopped("stopped"), 5)
    database.run_now(lambda c: rounds.save_state(c, round_, 5))
    assert database.run_now(lambda c: masks.unsettled(c, "run")) == [7]
    assert database.run_now(lambda c: masks.unsettled(c, "another")) == []


def test_ticket_of_a_key_epoch_does_not_change_when_its_roster_is_made_early() -> None:
    early = replace(EPOCH, shares_until_ms=1_500 + WINDOW)
    assert ticket_terms(early) == ticket_terms(EPOCH)
    assert ticket_terms(EPOCH).deadline_at_ms == 1_000 + 3 * WINDOW
    long_away = replace(EPOCH, shares_until_ms=900_000)
    assert ticket_terms(long_away).deadline_at_ms == 900_000 + WINDOW
