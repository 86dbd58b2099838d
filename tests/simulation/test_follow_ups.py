"""A client that says that its training is unfinished is woken again, with the same ticket; bounded by the round."""

from __future__ import annotations

from fedless.protocol.errors import Code
from tests.simulation.world import World, metrics, task

UNFINISHED = Code.UNFINISHED.value


async def wakes(world: World, client_id: str, count: int) -> None:
    async def often() -> bool:
        return len(world.waker.sent.get(client_id, [])) >= count

    await world.until(often, f"{count} wake-ups")


async def test_unfinished_client_is_woken_again_and_counted(world: World) -> None:
    run_id = await world.start(task(size=4, minimum=4))
    clients = await world.cohort(4)
    slow = clients[0]
    ticket = await world.ticket(slow)
    await world.check_in(slow)
    for number in (2, 3):
        await world.coordinator.put_metrics(slow, metrics(ticket.round_id, UNFINISHED))
        await wakes(world, slow, number)
    assert len(set(world.waker.sent[slow])) == 1, "the same bytes"
    for client_id in clients:
        await world.report(client_id)
    info = await world.ended(run_id)
    assert (info.state, info.rounds[0].reported) == ("finished", 4)


async def test_follow_up_that_never_comes_costs_the_round_its_client_and_no_more(world: World) -> None:
    run_id = await world.start(task(size=4, minimum=3))
    clients = await world.cohort(4)
    slow = clients[0]
    ticket = await world.ticket(slow)
    await world.check_in(slow)
    await world.coordinator.put_metrics(slow, metrics(ticket.round_id, UNFINISHED))
    for client_id in clients[1:]:
        await world.report(client_id)
    await world.asleep()
    world.clock.advance(100_000)
    info = await world.ended(run_id)
    assert (info.state, info.rounds[0].reported) == ("finished", 3)
    assert info.rounds[0].losses == {"never_reported": 1}


async def test_unfinished_client_is_woken_after_a_restart(world: World) -> None:
    run_id = await world.start(task(size=4, minimum=4))
    clients = await world.cohort(4)
    slow = clients[0]
    ticket = await world.ticket(slow)
    for client_id in clients:
        await world.check_in(client_id)
    await world.coordinator.put_metrics(slow, metrics(ticket.round_id, UNFINISHED))
    await wakes(world, slow, 2)
    await world.restart()
    await wakes(world, slow, 3)
    assert [len(world.waker.sent[client_id]) for client_id in clients[1:]] == [1, 1, 1]
    for client_id in clients:
        await world.report(client_id)
    assert (await world.ended(run_id)).state == "finished"
