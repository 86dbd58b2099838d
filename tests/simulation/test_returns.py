"""A broker that is killed forgets wake-ups that it took: whoever comes back is woken again, with the same ticket."""

from __future__ import annotations

import asyncio

from aggregator.returns import SILENT_MS
from aggregator.store import rounds as store
from tests.simulation.world import World, task


def sent(world: World) -> list[int]:
    return [len(world.waker.sent.get(f"client-{number}", [])) for number in range(4)]


async def come(world: World, *client_ids: str) -> None:
    """They come to the broker; whoever waits for their answers has begun to."""
    for client_id in client_ids:
        world.returns.came(client_id)
    await asyncio.sleep(0)


async def test_a_client_that_comes_and_stays_silent_is_woken_again(world: World) -> None:
    run_id = await world.start(task(size=4, minimum=4))
    first, second, *others = await world.cohort(4)
    await world.check_in(second)
    await come(world, first, second, "client-unknown")
    world.clock.advance(SILENT_MS)

    async def woken() -> bool:
        return len(world.waker.sent[first]) == 2

    await world.until(woken, "a second wake-up")
    assert len(set(world.waker.sent[first])) == 1, "the same bytes"
    assert [len(world.waker.sent[client_id]) for client_id in (second, *others)] == [1, 1, 1]
    for client_id in (first, second, *others):
        await world.report(client_id)
    assert (await world.ended(run_id)).rounds[0].reported == 4


async def test_a_client_that_answers_in_time_is_not_woken_twice(world: World) -> None:
    run_id = await world.start(task(size=4, minimum=4))
    cohort = await world.cohort(4)
    await come(world, *cohort)
    for client_id in cohort:
        await world.check_in(client_id)
    world.clock.advance(SILENT_MS)
    for client_id in cohort:
        await world.report(client_id)
    await world.ended(run_id)
    assert sent(world) == [1, 1, 1, 1]
    assert await world.database.run(lambda c: store.silent(c, cohort)) == []


async def test_a_client_that_came_later_has_its_own_time(world: World) -> None:
    await world.start(task(size=4, minimum=4))
    first, second, *_ = await world.cohort(4)
    await come(world, first)
    world.clock.advance(SILENT_MS - 1)
    await come(world, second)
    world.clock.advance(1)

    async def woken() -> bool:
        return len(world.waker.sent[first]) == 2

    await world.until(woken, "a second wake-up")
    assert len(world.waker.sent[second]) == 1
