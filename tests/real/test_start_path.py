"""What stands between a wake-up and the first step, without a clock: imports, downloads, connections, and who prepares.

The benchmarks measure the time (`bench_cold_start.py`, `bench_starts.py`); these keep what made it short.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.keystore import Identity, Keystore
from edge_runtime.linger import linger
from edge_runtime.link import Link
from edge_runtime.links import Links
from edge_runtime.participant import WakeUp
from fedless.protocol.messages import ClientRule, Kind
from tests.edge_device import CLIENT, wake, woken
from tests.edge_fleet import FakeAggregator, Fleet, wake_bytes

pytestmark = pytest.mark.real

ENOUGH_MB = 1_000_000
SEEN = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from pathlib import Path
from edge_runtime.participant import WakeUp, serve
def observe(step, round_id):
    print(step, *sys.modules, flush=True)
serve(Path(sys.argv[1]), WakeUp(sys.stdin.buffer.read(), 0.0, 0.0), observe)
"""


def rounds(fleet: Fleet, aggregator: FakeAggregator, count: int) -> list[WakeUp]:
    """So many rounds of one task, and their wake-ups."""
    task = fleet.task()
    tickets = [fleet.ticket(CLIENT, number, task) for number in range(1, count + 1)]
    for ticket in tickets:
        aggregator.open(ticket, task)
    return [woken(wake_bytes(ticket)) for ticket in tickets]


def modules_at(state: Path, data: bytes) -> dict[str, set[str]]:
    """By each step of one participant, in a fresh interpreter: what it has imported until then."""
    command = [sys.executable, "-I", "-S", "-c", SEEN, str(state), json.dumps(sys.path)]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=120)
    lines = (line.split() for line in done.stdout.decode().splitlines())
    return {words[0]: set(words[1:]) for words in lines if "edge_runtime.participant" in words}


def test_a_participant_imports_no_more_than_it_needs(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """Until the ticket is journaled, which an instance waits for; and until the end of a plain round."""
    task = fleet.task()
    for round_id in (1, 2):  # the first one verifies and unpacks the bundle
        ticket = fleet.ticket(CLIENT, round_id, task)
        aggregator.open(ticket, task)
        found = modules_at(state, wake_bytes(ticket))
    assert [metrics.outcome for metrics in aggregator.metrics] == ["reported"] * 2
    first = {
        "grpc",
        "numpy",
        "asyncio",
        "ssl",
        "logging",
        "tomllib",
        "email",
        "importlib.metadata",
        "tempfile",
    }
    first |= {"cryptography.x509", "cryptography.hazmat.primitives.serialization", "edge_runtime.lifecycle"}
    assert first & found["accepted"] == set()
    whole = {
        "numpy",
        "cryptography.x509",
        "edge_runtime.masked",
        "edge_runtime.orders",
        "edge_runtime.lifecycle",
    }
    assert whole & found["stored"] == set()
    assert "importlib.metadata" not in found["trained"], "it is for the status, behind the round"


def test_one_that_stays_keeps_its_connection_and_downloads_nothing_twice(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    wakes = rounds(fleet, aggregator, 3)
    assert linger(state, iter(wakes), ENOUGH_MB, lambda _: None) == 0
    assert [metrics.outcome for metrics in aggregator.metrics] == ["reported"] * 3
    assert aggregator.calls.count("fetch") == 2, "the bundle and the model, once each"
    assert len(aggregator.peers) == 1


def test_one_that_failed_to_be_heard_connects_anew(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    wakes = rounds(fleet, aggregator, 2)

    def between() -> Iterator[WakeUp]:
        yield wakes[0]
        port = aggregator.port
        aggregator.stop()
        aggregator.start(port)
        yield wakes[1]

    assert linger(state, between(), ENOUGH_MB, lambda _: None) == 0
    assert [metrics.outcome for metrics in aggregator.metrics] == ["reported"] * 2
    assert len(aggregator.peers) == 2


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_an_instance_knows_its_place_before_the_aggregator_is_asked(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, kind: Kind
) -> None:
    """It has its memory then, which it gets with its place; a version that is new here has neither."""
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    claims: list[int] = []

    def look(call: str) -> None:
        if call == "check_in":
            claims.append(len(list((state / "memory").glob("*.run"))))

    aggregator.before = look
    ticket = fleet.ticket(CLIENT, 2, task, kind=kind)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert aggregator.metrics[-1].outcome == "reported"
    assert claims == [1]
    assert list((state / "memory").glob("*.run")) == []


def test_a_link_is_used_again_only_while_it_is_young_well_and_of_the_same_identity(
    aggregator: FakeAggregator, state: Path
) -> None:
    own = Keystore(state).load()

    def used(identity: Identity = own, *, well: bool = True) -> Link:
        with links.open((), identity) as link:
            if not well:
                links.doubt()
            return link

    with closing(Links(keep=True)) as links:
        first = used()
        assert used() is first
        renewed = used(replace(own, chain_pem=own.chain_pem + b"\n"))
        assert renewed is not first
        second = used(well=False)
        third = used()
        assert len({id(link) for link in (first, renewed, second, third)}) == 4
        links.silent_s = 0.0
        assert used() is not third
        with pytest.raises(RuntimeError), links.open((), own):
            raise RuntimeError
    with closing(Links(keep=False)) as links:
        assert used() is not used()


def test_local_noise_is_added_in_an_instance_that_was_prepared(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """What DP-SGD needs is imported when the instance has locked itself in: by then its place is known, its job not."""
    task = fleet.task(rule=ClientRule(max_steps=1, example_clip=1.0, example_noise=1.0))
    data = []
    for number in (1, 2, 3):
        ticket = fleet.ticket(CLIENT, number, task)
        here = aggregator.open(ticket, task)
        assert wake(state, wake_bytes(ticket)) == 0
        data.append(bytes(here.data))
    assert [metrics.outcome for metrics in aggregator.metrics] == ["reported"] * 3
    assert len(set(data)) == 3, "fresh noise each time"
