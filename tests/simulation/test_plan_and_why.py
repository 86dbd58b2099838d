"""Plans from a past that really took place, and stories of it, through the real core and store."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator import stories
from aggregator.planning import Package
from aggregator.store import fleet
from aggregator.stories import Asked
from aggregator.tasks import parse
from aggregator.why import Story
from fedless.protocol.errors import Code, PeerError
from tests.simulation.world import World, metrics, refusal_of, task


async def told(world: World, run_id: str, number: int = 0, client_id: str = "") -> Story:
    return await stories.tell(world.database, Asked(run_id, number, client_id), world.clock())


async def two_rounds(world: World) -> str:
    """A finished run: two rounds of 5 s each; in the second, client-3 checks in and never reports."""
    run_id = await world.start(task(rounds=2, size=4, minimum=3))
    for number in range(4):
        await world.check_in(f"client-{number}")
    world.clock.advance(5_000)
    for number in range(4):
        await world.report(f"client-{number}")
    await world.phase(run_id, "committed")
    for number in range(4):
        await world.check_in(f"client-{number}", 2)
    world.clock.advance(5_000)
    for number in range(3):
        await world.report(f"client-{number}", 2)
    await world.phase(run_id, "grace", 2)
    world.clock.advance(8_000)
    await world.ended(run_id)
    return run_id


async def package(world: World, digest: bytes) -> Package:
    return Package(world.evaluator.check(digest), digest, 1000)


async def test_plan_knows_what_the_clients_took_before(world: World) -> None:
    run_id = await two_rounds(world)
    bundle = (await world.database.run(lambda c: c.exec_driver_sql("SELECT bundle_digest FROM runs").one()))[
        0
    ]
    seen = await world.runs.plan(parse(task(rounds=3, size=4, minimum=2)), await package(world, bundle))
    assert seen.measured_clients == 4
    assert seen.refusals == []
    assert 5_000 <= seen.round_p50_ms < 15_000
    other = await world.runs.plan(parse(task(rounds=3, size=4, minimum=2)), await package(world, bundle))
    assert other == seen
    assert (await world.runs.show(run_id)).state == "finished"


async def test_presence_counts_who_did_not_report(world: World) -> None:
    await two_rounds(world)
    bundle = (await world.database.run(lambda c: c.exec_driver_sql("SELECT bundle_digest FROM runs").one()))[
        0
    ]
    everybody = await world.runs.plan(parse(task(size=4)), await package(world, bundle))
    assert everybody.presence == pytest.approx((3 * (2 + 1.9) / 4 + (1 + 1.9) / 4) / 4)


async def test_run_start_refuses_what_the_plan_refuses(world: World) -> None:
    await two_rounds(world)
    hasty = task(rounds=1, size=4, minimum=2).replace("deadline_s = 100", "deadline_s = 1")
    with pytest.raises(PeerError) as refusal:
        await world.start(hasty)
    assert refusal.value.code is Code.OUT_OF_RANGE
    assert "The deadline of 1 s" in refusal.value.detail
    assert "round.deadline_s = " in refusal.value.fix
    assert len(await world.runs.list()) == 1


async def test_run_start_waits_for_clients_that_are_too_few_yet(tmp_path: Path) -> None:
    world = World(tmp_path, count=1)
    run_id = await world.start(task(rounds=1, size=4, minimum=2, wait_s=60))
    assert (await world.runs.show(run_id)).state == "running"
    assert await refusal_of(world.start(task(rounds=1, size=4, minimum=2, wait_s=0))) is Code.TOO_FEW
    await world.close()


async def test_story_of_a_round_a_run_and_a_client(world: World) -> None:
    run_id = await two_rounds(world)
    round_ = await told(world, run_id, 2)
    assert any("when the grace time was over; it had waited for client-3." in line for line in round_.lines)
    assert [each.name for each in round_.stretches][:3] == ["wake", "train", "wait"]
    assert round_.stretches[2].on == "client-3"
    whole = await told(world, run_id)
    assert "finished" in whole.title
    assert any("Lost once: client-3." in line for line in whole.lines)
    absent = await told(world, run_id, 2, "client-3")
    assert absent.lines[0].startswith("It was dropped: It checked in, and its report was not there")
    assert [what for _, what, _ in absent.timeline] == ["It checked in."]


async def test_story_survives_a_restart(world: World) -> None:
    run_id = await two_rounds(world)
    before = await told(world, run_id, 1)
    await world.restart()
    assert await told(world, run_id, 1) == before


async def test_an_aggregator_that_was_away_is_told_with_the_round_and_the_run(world: World) -> None:
    """Twenty seconds between its last word and its next start are why the round took as long."""
    run_id = await world.start(task(size=4, minimum=4))
    for client in range(3):
        await world.report(f"client-{client}")
    await world.crash()
    world.clock.advance(20_000)
    world.reopen()
    await world.runs.resume_all()
    await world.report("client-3")
    await world.ended(run_id)
    for number in (0, 1):
        story = await stories.tell(world.database, stories.Asked(run_id, number), world.clock())
        what = "The aggregator was started again, 20 s after it had last written something."
        assert (20_000, what, "") in story.timeline


async def test_client_that_was_not_drawn_is_told_so(tmp_path: Path) -> None:
    world = World(tmp_path, count=6)
    run_id = await world.start(task(size=2))
    chosen = await world.cohort(2)
    for client_id in chosen:
        await world.report(client_id)
    await world.ended(run_id)
    left = next(record.client_id for record in world.fleet.records if record.client_id not in chosen)

    await world.database.run(lambda c: fleet.add_claim(c, left, b"h" * 32, {}, 0, 0))
    await world.database.run(lambda c: fleet.enroll(c, left, 0))
    story = await told(world, run_id, 1, left)
    assert "2 of 6 eligible clients were drawn (uniform), and it was not among them." in story.lines[0]
    await world.close()


async def test_invocations_own_figures_say_where_the_time_went(world: World) -> None:
    run_id = await world.start(task(size=1, minimum=1))
    [client_id] = await world.cohort(1)
    await world.report(client_id)
    round_id = (await world.ticket(client_id)).round_id
    await world.coordinator.put_metrics(client_id, metrics(round_id))
    await world.ended(run_id)
    [line] = [line for line in (await told(world, run_id, 1)).stretches if line.name == "train"]
    assert line.on == client_id


async def test_unknown_things_are_refused(world: World) -> None:
    run_id = await two_rounds(world)
    assert await refusal_of(told(world, "absent")) is Code.UNKNOWN_RUN
    assert await refusal_of(told(world, run_id, 9)) is Code.UNKNOWN_ROUND
    assert await refusal_of(told(world, run_id, 1, "nobody")) is Code.UNKNOWN_CLIENT
