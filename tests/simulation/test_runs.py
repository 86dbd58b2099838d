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


# -- pausing


async def rounds_of(world: World, run_id: str) -> list[tuple[int, str]]:
    return [(each.number, each.state) for each in (await world.runs.show(run_id)).rounds]


async def opened(world: World, run_id: str, number: int) -> int | None:
    """The id of the run's round of this number, if it is open."""
    found = [each for each in (await world.runs.show(run_id)).rounds if each.number == number]
    return found[0].round_id if found and found[0].state == "collecting" else None


async def report_round(world: World, run_id: str, number: int) -> None:
    round_id = await world.until(lambda: opened(world, run_id, number))
    for client_id in await world.cohort(2, round_id):
        await world.report(client_id, nth=len(world.waker.tickets(client_id)))


async def test_a_paused_run_completes_its_open_round_and_opens_no_other(world: World) -> None:
    run_id = await world.start(task(rounds=2, size=2))
    cohort = await world.cohort(2)
    await world.report(cohort[0])
    info = await world.runs.pause(run_id)
    assert (info.state, info.reason, info.ended_at_ms) == ("paused", "paused by the operator", 0)
    await world.report(cohort[1])

    async def committed() -> bool:
        return await rounds_of(world, run_id) == [(1, "committed")] and not world.runs._drivers

    await world.until(committed)
    assert (await world.runs.show(run_id)).state == "paused"
    assert (await world.runs.resume(run_id)).state == "running"
    await report_round(world, run_id, 2)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 2)
    events = await world.log(run_id)
    assert [event for event in events if event in {"run_paused", "run_resumed"}] == [
        "run_paused", "run_resumed",
    ]  # fmt: skip


async def test_a_paused_run_survives_restarts(world: World) -> None:
    run_id = await world.start(task(rounds=2, size=2))
    cohort = await world.cohort(2)
    await world.runs.pause(run_id)
    await world.restart()
    for client_id in cohort:  # the open round is not lost with the restart
        await world.report(client_id)

    async def committed() -> bool:
        return await rounds_of(world, run_id) == [(1, "committed")] and not world.runs._drivers

    await world.until(committed)
    await world.restart()
    await world.until(lambda: asyncio.sleep(0, not world.runs._drivers))
    assert (await world.runs.show(run_id)).state == "paused"
    assert await rounds_of(world, run_id) == [(1, "committed")]
    await world.runs.resume(run_id)
    await world.restart()  # and so does a resumed one
    await report_round(world, run_id, 2)
    assert (await world.ended(run_id)).model_version == 2


async def test_pausing_while_a_run_waits_for_clients_is_heard(world: World) -> None:
    world.fleet.records, everybody = [], world.fleet.records
    run_id = await world.start(task(size=2))
    await world.asleep()
    await world.runs.pause(run_id)
    world.clock.advance(2_000)
    await world.until(lambda: asyncio.sleep(0, not world.runs._drivers))
    world.clock.advance(600_000)
    assert (await world.runs.show(run_id)).state == "paused", "nobody waited while it was paused"
    world.fleet.records = everybody
    await world.runs.resume(run_id)
    for client_id in await world.cohort(2):
        await world.report(client_id)
    assert (await world.ended(run_id)).state == "finished"


async def test_pausing_and_resuming_at_once_leaves_a_run_that_goes_on(world: World) -> None:
    run_id = await world.start(task(rounds=2, size=2))
    for number in (1, 2):
        await world.until(lambda number=number: opened(world, run_id, number))  # type: ignore[misc]
        await world.runs.pause(run_id)
        await report_round(world, run_id, number)
        await world.runs.resume(run_id)  # the driver may be at its end, or not
    assert (await world.ended(run_id)).state == "finished"


async def test_a_paused_run_can_be_stopped_and_an_ended_one_not_paused(world: World) -> None:
    run_id = await world.start(task(size=2))
    await world.cohort(2)
    await world.runs.pause(run_id)
    assert (await world.runs.stop(run_id)).state == "stopped"
    assert await rounds_of(world, run_id) == [(1, "abandoned")]
    assert await refusal_of(world.runs.pause(run_id)) is Code.WRONG_STATE
    assert await refusal_of(world.runs.resume(run_id)) is Code.WRONG_STATE
    assert await refusal_of(world.runs.pause("absent")) is Code.UNKNOWN_RUN
