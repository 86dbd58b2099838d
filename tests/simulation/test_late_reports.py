"""Reports on older models through the real core: each counts once, with its weight, through kills and repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import NotNow
from tests.simulation.masked_world import MaskedWorld, masked_task
from tests.simulation.world import World, pieces, refusal_of, task, unit

SCAN = 'strategy = "fedlesscan"'
BUFF = 'strategy = "fedbuff"\nstrategy_options = {buffer = 2}'
ROOT = 1 / math.sqrt(2)
GRACE_MS = 1_500


async def round_two(world: World, toml: str) -> str:
    """Clients 0 and 1 reported in round 1, 2 and 3 are at work on its model; round 2 is open."""
    run_id = await world.start(toml)
    for number in (0, 1):
        await world.report(f"client-{number}")
    if SCAN in toml:
        await world.phase(run_id, "grace")
        await world.asleep()
        world.clock.advance(GRACE_MS)
    await world.phase(run_id, "collecting", 2)
    return run_id


async def weights(world: World, run_id: str) -> list[float]:
    return [round(weight, 5) for weight in (await world.weights(run_id))[:4]]


async def test_fedlesscans_late_update_counts_half_in_the_next_round(world: World) -> None:
    """(t_k+1)/(t+1) = 1/2, renormalised: (e0 + e1 + e2 / 2) / 2.5 on top of (e0 + e1) / 2."""
    run_id = await round_two(world, task(rounds=2, top=SCAN))
    await world.report("client-2")
    for number in (0, 1):
        await world.report(f"client-{number}", 2)
    info = await world.ended(run_id)
    assert await weights(world, run_id) == [0.9, 0.9, 0.2, 0.0]
    assert info.rounds[1].metrics["late_reports"] == 1.0


async def test_a_late_report_counts_once_through_kills_and_repeats(world: World) -> None:
    run_id = await round_two(world, task(rounds=2, top=SCAN))
    await world.restart()
    await world.check_in("client-2")
    await world.restart()
    for _ in range(3):
        await world.send("client-2", unit(2))
        await world.restart()
    await world.report("client-0", 2)
    await world.restart()
    await world.report("client-1", 2)
    await world.ended(run_id)
    await world.send("client-2", unit(2))  # its answer was lost: it is told again that the report is counted
    assert await weights(world, run_id) == [0.9, 0.9, 0.2, 0.0]


async def test_a_report_later_than_the_tolerance_is_refused(world: World) -> None:
    """Client 3 is at work through rounds 2 and 3, on version 0; in round 4 its model is three versions old."""
    run_id = await round_two(world, task(rounds=5, top=SCAN))
    for nth in (2, 3):
        for number in (0, 1):
            await world.report(f"client-{number}", nth)
        await world.phase(run_id, "committed", nth)
    await world.phase(run_id, "collecting", 4)
    assert await world.check_in("client-3") == NotNow("round_closed", 0)
    assert await refusal_of(world.send("client-3", unit(3))) is Code.ROUND_CLOSED
    losses = (await world.runs.show(run_id)).rounds[2].losses
    assert losses["too_late"] == 2


async def test_between_two_rounds_a_late_client_is_asked_to_come_again(world: World) -> None:
    run_id = await world.start(task(rounds=2, top=BUFF))
    await world.cohort(4)
    await world.check_in("client-2")
    await world.runs.halt(run_id)  # nobody commits, nobody opens the next round
    for number in (0, 1):
        await world.report(f"client-{number}")
    assert await world.check_in("client-3") == NotNow("busy", 1000)
    with pytest.raises(PeerError, match="open in a moment") as refusal:
        await world.send("client-2", unit(2))
    assert refusal.value.retry_after_ms == 1000
    await world.restart()
    await world.phase(run_id, "collecting", 2)
    await world.send("client-2", unit(2))
    await world.report("client-3")
    await world.ended(run_id)
    assert await weights(world, run_id) == [0.5, 0.5, round(ROOT / 2, 5), round(ROOT / 2, 5)]


async def test_bytes_that_were_under_way_when_the_round_closed_come_again(world: World) -> None:
    run_id = await world.start(task(rounds=2, top=BUFF))
    await world.check_in("client-2")
    header = await world.header("client-2", unit(2))
    await world.coordinator.begin_report("client-2", header)
    half = world.coordinator.put_report("client-2", header.round_id, 0, pieces(unit(2)[:40]))
    assert await refusal_of(half) is Code.WRONG_LENGTH
    for number in (0, 1):
        await world.report(f"client-{number}")
    await world.phase(run_id, "collecting", 2)
    assert await world.coordinator.begin_report("client-2", header) == (0, False)
    await world.send("client-2", unit(2))
    other = await world.header("client-2", unit(5))
    assert await refusal_of(world.coordinator.begin_report("client-2", other)) is Code.CONFLICTING_REPEAT
    await world.report("client-0", 2)
    await world.ended(run_id)
    assert await weights(world, run_id) == [1.0, 0.5, round(ROOT / 2, 5), 0.0]


async def test_fedbuff_makes_a_model_of_each_two_reports_of_whatever_age(world: World) -> None:
    """Four at work, a buffer of two. The mean is by examples without age: a stale buffer makes a shorter step."""
    run_id = await round_two(world, task(rounds=3, top=BUFF))
    assert len(world.waker.tickets("client-2")) == 1, "who is at work is not asked again"
    await world.report("client-2")
    await world.report("client-0", 2)
    await world.phase(run_id, "collecting", 3)
    await world.restart()
    await world.report("client-3")  # two versions behind
    await world.report("client-1", 2)  # one
    await world.ended(run_id)
    expected = [0.5 + 0.5, 0.5 + ROOT / 2, ROOT / 2, 1 / math.sqrt(3) / 2]
    assert await weights(world, run_id) == [round(weight, 5) for weight in expected]


async def test_apodotikos_rule_renormalises_and_asks_idle_clients(world: World) -> None:
    """n = 2, CR = 1/2: one report makes a model. Alone, a stale one weighs as much as any other."""
    top = 'strategy = "apodotiko"\nstrategy_options = {ratio = 0.5}'
    run_id = await world.start(task(rounds=2, size=2, minimum=1, top=top))
    first, second = await world.cohort(2)
    await world.report(first)
    await world.phase(run_id, "collecting", 2)
    assert len(await world.cohort(2, (await world.runs.show(run_id)).rounds[1].round_id)) == 2
    assert len(world.waker.tickets(second)) == 1
    await world.report(second)
    await world.ended(run_id)
    found = np.array(await world.weights(run_id))
    assert sorted(found.tolist()) == [0.0] * 14 + [1.0, 1.0]


async def test_when_the_run_ends_whoever_is_at_work_is_too_late(world: World) -> None:
    run_id = await world.start(task(rounds=1, top=BUFF))
    for number in (0, 1):
        await world.report(f"client-{number}")
    await world.ended(run_id)
    assert await world.check_in("client-2") == NotNow("round_closed", 0)


async def test_a_ticket_is_good_for_as_long_as_its_report_may_count(world: World) -> None:
    """Tolerance 2: two rounds longer than the round itself, in the ticket and in the offer."""
    await world.start(task(rounds=2, top=SCAN))
    ticket = await world.ticket("client-2")
    assert ticket.not_after_ms == world.clock.now_ms + 3 * 100_000
    offer = await world.check_in("client-2")
    assert not isinstance(offer, NotNow)
    assert offer.deadline_at_ms == ticket.not_after_ms


async def test_a_late_client_that_never_came_gets_its_own_ticket_again_after_a_kill(world: World) -> None:
    run_id = await round_two(world, task(rounds=2, top=BUFF))
    before = world.waker.tickets("client-3")
    world.waker.sent.clear()
    await world.restart()
    assert (await world.ticket("client-3")) == before[0]
    await world.runs.stop(run_id)


async def test_late_reports_are_refused_under_masks(masked_world: MaskedWorld) -> None:
    text = masked_task().replace("[cohort]", f"{SCAN}\n[cohort]", 1)
    with pytest.raises(PeerError, match="masks are of a round that is closed"):
        await masked_world.start(text)
