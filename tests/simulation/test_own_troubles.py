"""The aggregator's own troubles: a full disk, a broker that is away, no clients."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import AsyncIterator

from sqlalchemy import Connection

from aggregator.events import ModelCommitted
from aggregator.store import history, runs
from aggregator.store.records import ModelRecord
from fedless.protocol.errors import Code
from tests.simulation.world import World, counted, pieces, refusal_of, task, unit


async def test_a_full_disk_is_a_refusal_and_nothing_is_lost(world: World) -> None:
    run_id = await world.start(task(size=1, minimum=1))
    [client_id] = await world.cohort(1)
    await world.check_in(client_id)
    data = unit(int(client_id[-1]))
    header = await world.header(client_id, data)
    await world.coordinator.begin_report(client_id, header)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def filling() -> AsyncIterator[bytes]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))  # writes beyond it fail as on a full disk
        async for piece in pieces(data):
            yield piece

    try:
        code = await refusal_of(world.coordinator.put_report(client_id, header.round_id, 0, filling()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code is Code.DISK_FULL
    assert await world.coordinator.begin_report(client_id, header) == (20, False)
    await world.send(client_id, data)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([client_id])


async def test_wake_ups_wait_for_the_broker(world: World) -> None:
    world.waker.broken = True
    run_id = await world.start()
    await world.phase(run_id, "collecting")

    async def failed() -> bool:
        events = await world.database.run(lambda c: history.read(c, run_id, 0))
        return [event.event for event in events].count("wake_failed") == 4

    await world.until(failed)
    await world.asleep(5)  # four wake-ups and the deadline
    world.waker.broken = False
    world.clock.advance(1000)
    cohort = await world.cohort(4)
    for client_id in cohort:
        await world.report(client_id)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)


async def test_a_run_says_that_it_waits_for_clients(world: World) -> None:
    records, world.fleet.records = world.fleet.records, []
    run_id = await world.start(task(wait_s=10))

    async def said() -> bool:
        return "0 clients eligible, at least 2 needed" in (await world.runs.show(run_id)).reason

    await world.until(said)
    await world.asleep()
    world.fleet.records = records
    world.clock.advance(2000)
    assert len(await world.cohort(4)) == 4
    assert (await world.runs.show(run_id)).reason == ""


async def test_a_run_without_clients_fails_by_name(world: World) -> None:
    world.fleet.records = []
    run_id = await world.start(task(wait_s=2))
    await world.asleep()
    world.clock.advance(2000)
    info = await world.ended(run_id)
    assert info.reason == "too_few: 0 clients eligible, at least 2 needed, after 2 s"


# -- callers that go away, and steps that cross each other


async def test_a_connection_that_breaks_in_the_middle_of_a_step_does_not_cut_it_short(world: World) -> None:
    run_id = await world.start(task(size=1, minimum=1))
    [client_id] = await world.cohort(1)
    await world.check_in(client_id)
    data = unit(int(client_id[-1]))
    header = await world.header(client_id, data)
    await world.coordinator.begin_report(client_id, header)
    await world.spool.receive(header.round_id, client_id, 0, len(data), pieces(data))
    began, go_on = threading.Event(), threading.Event()

    def block(_connection: Connection) -> None:
        began.set()
        go_on.wait(10)

    blocking = asyncio.ensure_future(world.database.run(block))
    await asyncio.to_thread(began.wait, 10)
    call = asyncio.create_task(
        world.coordinator.put_report(client_id, header.round_id, len(data), pieces(b""))
    )
    done, _ = await asyncio.wait([call], timeout=0.3)
    assert not done, "the last report waits for the database"
    call.cancel()
    await asyncio.wait([call])
    go_on.set()
    await blocking
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([client_id])


async def test_a_model_that_comes_after_the_stop_is_not_written(world: World) -> None:
    run_id = await world.start(task(size=2))
    cohort = await world.cohort(2)
    await world.runs.halt(run_id)  # so that the round stays committing
    for client_id in cohort:
        await world.report(client_id)
    round_id = (await world.ticket(cohort[0])).round_id
    await world.runs.stop(run_id)
    late = ModelRecord(1, bytes(32), round_id)

    def record(connection: Connection) -> None:
        runs.insert_model(connection, run_id, late, world.clock())

    await world.coordinator.finish(round_id, ModelCommitted(), record)
    info = await world.runs.show(run_id)
    assert (info.model_version, info.rounds[0].state) == (0, "abandoned")
