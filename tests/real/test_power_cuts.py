"""SIGKILL of a participant at each named step, then a start: consistent state and exactly one report, each time."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from edge_runtime.journal import Journal
from tests.edge_device import CLIENT, killed_at, participant, wake
from tests.edge_fleet import PARAMETERS, FakeAggregator, Fleet, wake_bytes

pytestmark = pytest.mark.real


def assert_one_report(state: Path, aggregator: FakeAggregator, round_id: int) -> None:
    here = aggregator.rounds[round_id]
    assert here.accepted == 1
    assert len(here.data) == 4 * PARAMETERS
    journal = Journal.open(state / "journal.db", read_only=True)
    try:
        journal.check()
        assert journal.open_rounds() == []
        assert journal.reports() == []
        assert journal.counters()["reported"] == 1
    finally:
        journal.close()
    assert list((state / "outbox").iterdir()) == []
    assert not list((state / "functions").glob(".*"))


@pytest.mark.parametrize("step", ["accepted", "checked_in", "downloaded", "trained", "stored", "ended"])
@pytest.mark.parametrize("redelivered", [False, True])
def test_power_cut_after_each_step(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, step: str, *, redelivered: bool
) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    data = wake_bytes(ticket)
    assert killed_at(step, state, data) == -signal.SIGKILL
    assert wake(state, data if redelivered else b"") == 0
    assert_one_report(state, aggregator, 1)


def test_power_cut_at_each_step_of_one_round(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    """The power fails again and again, each time a step further on."""
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    for step in ("accepted", "checked_in", "trained", "stored"):
        assert killed_at(step, state, wake_bytes(ticket)) == -signal.SIGKILL
    assert wake(state) == 0
    assert_one_report(state, aggregator, 1)
    assert aggregator.calls.count("check_in") == 3, "a stored report is not trained again"


def test_power_cut_while_the_report_is_sent(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    """Killed when the aggregator has accepted the report, but before its answer is out."""
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    process = participant(state)
    aggregator.before = lambda call: process.kill() if call == "report_accepted" else None
    process.communicate(wake_bytes(ticket), timeout=60)
    assert process.returncode == -signal.SIGKILL
    aggregator.before = lambda _: None
    assert wake(state) == 0
    assert_one_report(state, aggregator, 1)


@pytest.mark.slow
def test_kills_at_random_moments(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    for round_id in range(1, 13):
        task = fleet.task()
        ticket = fleet.ticket(CLIENT, round_id, task)
        here = aggregator.open(ticket, task)
        process = participant(state)
        try:
            process.communicate(wake_bytes(ticket), timeout=0.04 * round_id)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        assert wake(state, wake_bytes(ticket)) == 0
        assert here.accepted == 1, f"killed after {40 * round_id} ms"
    journal = Journal.open(state / "journal.db", read_only=True)
    assert journal.counters()["reported"] == 12
    journal.close()


def test_round_that_never_comes_to_an_end_is_given_up(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    for _ in range(6):
        killed_at("checked_in", state, wake_bytes(ticket))
    assert wake(state) == 0
    journal = Journal.open(state / "journal.db", read_only=True)
    assert journal.counters() == {"duplicate": 5, "instance_failed": 1}
    journal.close()
    assert aggregator.rounds[1].accepted == 0
