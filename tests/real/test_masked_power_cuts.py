"""SIGKILL of a participant at each step of a masked round: it never says two things, and the sum comes out right."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.journal import Journal
from fedless.protocol.messages import Kind
from tests.edge_device import CLIENT, killed_at, participant, wake
from tests.edge_fleet import wake_bytes
from tests.masked_edge_fleet import MaskedAggregator, MaskedFleet

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
EPOCH, ROUND = 100, 101


@pytest.fixture(scope="module")
def fleet() -> MaskedFleet:
    return MaskedFleet()


@pytest.fixture
def aggregator(fleet: MaskedFleet) -> Iterator[MaskedAggregator]:
    aggregator = MaskedAggregator(fleet, CLIENT)
    aggregator.start()
    yield aggregator
    aggregator.stop()


@pytest.fixture
def state(fleet: MaskedFleet, aggregator: MaskedAggregator, tmp_path: Path) -> Path:
    return fleet.device(tmp_path / "state", CLIENT, aggregator.port)


def check(state: Path, aggregator: MaskedAggregator) -> None:
    """One report, counted once; its shares open the sum; and the mean is that of everybody's updates."""
    assert [here.accepted for here in aggregator.rounds.values()] == [1]
    decoded = aggregator.opened_mean()
    weight = decoded.weight * 1000
    device = round(weight) - 7 * 10  # its examples
    assert device == 40
    update = decoded.mean * weight / device
    update[:7] -= 10 / device  # the others' unit vectors
    assert np.abs(update).max() < 0.5
    assert 0 < np.abs(update).mean() < 0.2, "a round of small steps"
    journal = Journal.open(state / "journal.db", read_only=True)
    try:
        journal.check()
        assert (journal.open_rounds(), journal.reports()) == ([], [])
    finally:
        journal.close()


@pytest.mark.parametrize("step", ["keys_stored", "keys_sent", "shares_stored", "shares_sent", "epoch_joined"])
def test_power_cut_in_the_set_up_repeats_itself_byte_for_byte(
    aggregator: MaskedAggregator, state: Path, step: str
) -> None:
    data = wake_bytes(aggregator.ticket(Kind.EPOCH, EPOCH))
    assert killed_at(step, state, data) == -signal.SIGKILL
    assert wake(state) == 0
    assert wake(state, wake_bytes(aggregator.open_masked(ROUND))) == 0
    check(state, aggregator)


@pytest.mark.parametrize("step", ["slot_bound", "trained", "stored", "answer_stored", "answer_sent"])
def test_power_cut_in_a_masked_round_masks_once_and_answers_once(
    aggregator: MaskedAggregator, state: Path, step: str
) -> None:
    assert wake(state, wake_bytes(aggregator.ticket(Kind.EPOCH, EPOCH))) == 0
    assert killed_at(step, state, wake_bytes(aggregator.open_masked(ROUND))) == -signal.SIGKILL
    assert wake(state) == 0
    if aggregator.masked is not None and not aggregator.masked.responses:
        assert wake(state, wake_bytes(aggregator.ticket(Kind.UNMASK, ROUND))) == 0
    check(state, aggregator)


def test_power_cut_while_the_masked_report_is_sent(aggregator: MaskedAggregator, state: Path) -> None:
    """Killed when the report is accepted, but before the answer is out: the same bytes are offered again."""
    assert wake(state, wake_bytes(aggregator.ticket(Kind.EPOCH, EPOCH))) == 0
    ticket = aggregator.open_masked(ROUND)
    process = participant(state)
    aggregator.before = lambda call: process.kill() if call == "report_accepted" else None
    process.communicate(wake_bytes(ticket), timeout=60)
    assert process.returncode == -signal.SIGKILL
    aggregator.before = lambda _: None
    assert wake(state) == 0
    if aggregator.masked is not None and not aggregator.masked.responses:
        assert wake(state, wake_bytes(aggregator.ticket(Kind.UNMASK, ROUND))) == 0
    check(state, aggregator)
