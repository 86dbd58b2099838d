"""Training that takes longer than a function may run: it goes on in another invocation, from an object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_adapters.handlers.function import CloudFunction
from fedless.protocol.cloud import Payload, deployment_from_json, payload_to_json
from fedless.protocol.errors import Code
from fedless.protocol.messages import Task, Ticket
from tests.cloud_fleet import CloudFleet

pytest.importorskip("obstore", reason="needs obstore (fedless[objects])")
CLIENT = "fn-1"
LEFT_MS = 90_000


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[CloudFleet]:
    fleet = CloudFleet(tmp_path)
    yield fleet
    fleet.stop()


def function(
    fleet: CloudFleet, folder: Path, *, states: bool = True, reserve_ms: int = LEFT_MS
) -> CloudFunction:
    """With all its time in reserve it makes one step in each invocation."""
    deployment = deployment_from_json(fleet.deployment(CLIENT))
    if states:
        deployment = replace(deployment, states=(folder / "store").as_uri())
    folder.mkdir(exist_ok=True)
    return CloudFunction(deployment, folder, reserve_ms)


def three_steps(fleet: CloudFleet) -> Task:
    task = fleet.fleet.task()
    return replace(task, rule=replace(task.rule, local_epochs=100, max_steps=3))


async def invoke(fleet: CloudFleet, function: CloudFunction, ticket: Ticket) -> str:
    payload = payload_to_json(Payload(fleet.wake_bytes(ticket), await fleet.claim(CLIENT)))
    return str(function.run(payload, left_ms=LEFT_MS)["outcome"])


async def test_training_goes_on_in_follow_up_invocations(fleet: CloudFleet, tmp_path: Path) -> None:
    """Each with a claim and a process of its own; the update is bit for bit that of one long invocation."""
    task = three_steps(fleet)
    whole = fleet.open_round(CLIENT, task)
    assert await invoke(fleet, function(fleet, tmp_path / "a", states=False), whole) == "reported"
    ticket = fleet.open_round(CLIENT, task)
    outcomes = []
    for number in range(3):
        process = function(fleet, tmp_path / "b")
        outcomes.append(await invoke(fleet, process, ticket))
        kept = [path.name for path in (tmp_path / "b" / "store").rglob("*.state")]
        assert kept == ([f"{ticket.round_id}.state"] if number < 2 else []), "erased behind the report"
    assert outcomes == ["unfinished", "unfinished", "reported"]
    assert len([given for given in fleet.claims.values() if given.public_key]) == 4
    one, other = (fleet.aggregator.rounds[each.round_id].header for each in (whole, ticket))
    assert one is not None
    assert other is not None
    assert (one.sha256, one.examples, one.sums) == (other.sha256, other.examples, other.sums)
    assert [metrics.outcome for metrics in fleet.aggregator.metrics] == ["reported", *outcomes]


async def test_follow_up_that_never_comes_leaves_a_state_that_the_next_round_removes(
    fleet: CloudFleet, tmp_path: Path
) -> None:
    task = three_steps(fleet)
    left = fleet.open_round(CLIENT, task)
    assert await invoke(fleet, function(fleet, tmp_path), left) == Code.UNFINISHED.value
    assert not fleet.reported(left.round_id)
    after = fleet.open_round(CLIENT, task)
    assert await invoke(fleet, function(fleet, tmp_path, reserve_ms=0), after) == "reported"
    assert [path.name for path in (tmp_path / "store").rglob("*.state")] == []


async def test_state_that_was_changed_in_the_store_is_not_gone_on_with(
    fleet: CloudFleet, tmp_path: Path
) -> None:
    task = three_steps(fleet)
    ticket = fleet.open_round(CLIENT, task)
    assert await invoke(fleet, function(fleet, tmp_path), ticket) == Code.UNFINISHED.value
    [file] = (tmp_path / "store").rglob("*.state")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert await invoke(fleet, function(fleet, tmp_path, reserve_ms=0), ticket) == "reported"
    whole = fleet.open_round(CLIENT, task)
    assert await invoke(fleet, function(fleet, tmp_path, reserve_ms=0), whole) == "reported"
    headers = [fleet.aggregator.rounds[each.round_id].header for each in (ticket, whole)]
    assert len({header.sha256 for header in headers if header is not None}) == 1, "it began anew"


async def test_store_that_cannot_be_written_is_told(fleet: CloudFleet, tmp_path: Path) -> None:
    ticket = fleet.open_round(CLIENT, three_steps(fleet))
    process = function(fleet, tmp_path)
    (tmp_path / "store").write_text("a file in the way")
    assert await invoke(fleet, process, ticket) == Code.DATA_UNREADABLE.value
