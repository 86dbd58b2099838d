"""A participant that stays: the second round is forked warm, budgets and broken pipes end it, nothing is left over."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edge_runtime.handover import frame
from edge_runtime.linger import frames, linger
from edge_runtime.participant import WakeUp
from fedless.protocol.messages import Ticket
from tests.edge_device import CLIENT, woken
from tests.edge_fleet import FakeAggregator, Fleet, wake_bytes
from tests.edge_processes import below

pytestmark = pytest.mark.real

ENOUGH_MB = 1_000_000  # this very process is counted, with all that other tests have imported into it


def rounds(fleet: Fleet, aggregator: FakeAggregator, count: int) -> list[Ticket]:
    task = fleet.task()
    tickets = [fleet.ticket(CLIENT, number, task) for number in range(1, count + 1)]
    for ticket in tickets:
        aggregator.open(ticket, task)
    return tickets


def wakes(tickets: list[Ticket]) -> Iterator[WakeUp]:
    for ticket in tickets:
        yield woken(wake_bytes(ticket))


def test_second_round_starts_warm_and_sooner(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    said: list[str] = []
    before = len(below())
    assert linger(state, wakes(rounds(fleet, aggregator, 3)), ENOUGH_MB, said.append) == 0
    assert said == ["accepted", "idle"] * 3
    assert [metrics.start for metrics in aggregator.metrics] == ["cold", "warm", "warm"]
    cold, *warm = [metrics.timings_ms["first_step"] for metrics in aggregator.metrics]
    assert min(warm) < cold
    assert len(below()) == before


def test_too_small_a_budget_ends_it_after_one_round(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    said: list[str] = []
    before = len(below())
    assert linger(state, wakes(rounds(fleet, aggregator, 2)), 1, said.append) == 0
    assert said == ["accepted"]
    assert len(below()) == before


def test_a_fork_server_that_was_killed_costs_a_cold_start_and_nothing_else(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    before = below()

    def killing() -> Iterator[WakeUp]:
        for wake in wakes(rounds(fleet, aggregator, 3)):
            for process in below():
                if process not in before:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            yield wake

    assert linger(state, killing(), ENOUGH_MB, lambda _: None) == 0
    assert [(m.start, m.outcome) for m in aggregator.metrics] == [("cold", "reported")] * 3


def test_frames_are_read_whole_and_end_with_the_pipe() -> None:
    ours, theirs = os.pipe()
    first, second = b"wake\nup", b""
    sent = frame(first, 1.5, 20.0) + frame(second, 2.5, 20.0)
    for byte in sent:
        os.write(theirs, bytes([byte]))
    os.close(theirs)
    found = list(frames(ours, 5.0))
    os.close(ours)
    assert [(wake.data, wake.received) for wake in found] == [(first, 1.5), (second, 2.5)]


@pytest.mark.parametrize("sent", [b"hello\n", b"-1 1 1 1\n", b"99999 1 1 1\n", b"x" * 500])
def test_nonsense_on_the_pipe_ends_it(sent: bytes) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, sent)
    assert list(frames(ours, 5.0)) == []
    os.close(ours)
    os.close(theirs)


def test_it_leaves_when_nobody_calls() -> None:
    ours, theirs = os.pipe()
    since = time.monotonic()
    assert list(frames(ours, 0.05)) == []
    assert time.monotonic() - since < 60
    os.close(ours)
    os.close(theirs)
