"""Starting, watching and showing runs; each mistake of the operator is told by name."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fedless.protocol.errors import Code, PeerError
from tests.simulation.world import BUNDLE, World, refusal_of, task


async def blobs(world: World) -> tuple[bytes, bytes]:
    bundle, _ = await world.blobs.put_bytes(BUNDLE)
    initial, _ = await world.blobs.put_bytes(np.zeros(16, "<f4").tobytes())
    return bundle, initial


async def test_a_task_with_mistakes_is_refused_with_all_of_them(world: World) -> None:
    bundle, initial = await blobs(world)
    with pytest.raises(PeerError) as refusal:
        await world.runs.start(task().replace("size = 4", 'size = "four"\nsise = 4'), bundle, initial)
    assert refusal.value.code is Code.CONFIG_INVALID
    assert "cohort.size: expected a valid integer" in refusal.value.detail
    assert "cohort.sise: unknown key" in refusal.value.detail
    assert await world.runs.list() == []


async def test_blobs_that_did_not_come_are_named(world: World) -> None:
    bundle, initial = await blobs(world)
    start = world.runs.start
    assert await refusal_of(start(task(), bytes(32), initial)) is Code.UNKNOWN_BLOB
    assert await refusal_of(start(task(), bundle, bytes(32))) is Code.UNKNOWN_BLOB
    assert await refusal_of(start(task(), bundle, initial, bytes(32))) is Code.UNKNOWN_BLOB
    assert await refusal_of(start(task(top='test_set = "t.npz"'), bundle, initial)) is Code.UNKNOWN_BLOB
    assert await world.runs.list() == []


async def test_initial_weights_of_another_model_are_refused(world: World) -> None:
    bundle, _ = await blobs(world)
    short, _ = await world.blobs.put_bytes(np.zeros(15, "<f4").tobytes())
    assert await refusal_of(world.runs.start(task(), bundle, short)) is Code.WRONG_LENGTH


async def test_watching_follows_a_run_to_its_end(world: World) -> None:
    run_id = await world.start(task(size=2))
    seen: list[str] = []

    async def watch() -> None:
        seen.extend([event.event async for event in world.runs.watch(run_id)])

    watching = asyncio.create_task(watch())
    for client_id in await world.cohort(2):
        await world.report(client_id)
    await asyncio.wait_for(watching, 20)
    assert seen == await world.log(run_id)
    assert seen[-1] == "run_finished"


async def test_watching_goes_on_behind_a_sequence_number(world: World) -> None:
    run_id = await world.start(task(size=2))
    for client_id in await world.cohort(2):
        await world.report(client_id)
    await world.ended(run_id)
    events = [event async for event in world.runs.watch(run_id)]
    later = [event async for event in world.runs.watch(run_id, after=events[3].sequence)]
    assert later == events[4:]


async def test_unknown_runs_are_refused(world: World) -> None:
    assert await refusal_of(world.runs.show("absent")) is Code.UNKNOWN_RUN
    assert await refusal_of(world.runs.stop("absent")) is Code.UNKNOWN_RUN
    assert await refusal_of(anext(world.runs.watch("absent"))) is Code.UNKNOWN_RUN


async def test_stopping_an_ended_run_changes_nothing(world: World) -> None:
    run_id = await world.start(task(size=2))
    for client_id in await world.cohort(2):
        await world.report(client_id)
    before = await world.ended(run_id)
    assert await world.runs.stop(run_id) == before
