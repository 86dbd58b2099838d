"""Best models, early stopping, channels: through the real driver and store, over restarts."""

from __future__ import annotations

from aggregator.catalogue import Catalogue
from fedless.protocol.errors import Code
from tests.simulation.world import World, refusal_of, task


async def report_all(world: World, run_id: str, number: int) -> None:
    for client in range(2):
        await world.report(f"client-{client}", number)
    await world.phase(run_id, "committed", number)


def catalogue(world: World) -> Catalogue:
    return Catalogue(world.database, world.clock)


async def test_run_ends_when_it_has_not_improved_and_a_restart_remembers(world: World) -> None:
    """Each round adds 1/16 to the mean weight, which the fake evaluator gives as accuracy: the lowest is the first."""
    text = task(rounds=9, size=2, stop="patience = 2").replace(
        "central_every = 1", 'central_every = 1\nbest_is = "lowest"'
    )
    text = text.replace('best_is = "lowest"', 'best = "test_accuracy"\nbest_is = "lowest"')
    world.fleet.records = world.fleet.records[:2]
    run_id = await world.start(text)
    await report_all(world, run_id, 1)
    await report_all(world, run_id, 2)
    await world.restart()
    await report_all(world, run_id, 3)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)
    assert info.reason == "test_accuracy has not improved for 2 models; the best is version 1 with 0.0625"
    models = await catalogue(world).models(run_id)
    assert [(each.version, each.number, each.is_best) for each in models] == [
        (0, 0, False),
        (1, 1, True),
        (2, 2, False),
        (3, 3, False),
    ]
    assert models[1].metrics["test_accuracy"] == 0.0625


async def finished(world: World) -> str:
    world.fleet.records = world.fleet.records[:2]
    run_id = await world.start(task(rounds=2, size=2))
    await report_all(world, run_id, 1)
    await report_all(world, run_id, 2)
    await world.ended(run_id)
    return run_id


async def test_channel_serves_what_was_promoted_and_goes_back(world: World) -> None:
    run_id = await finished(world)
    models = catalogue(world)
    for version in (0, 1):
        await models.promote("production", run_id, version)
    assert (await models.promote("production", run_id, None)).version == 2, "the best"
    assert (await models.promote("production", run_id, 2)).sequence == 3, "again changes nothing"
    await world.restart()
    models = catalogue(world)
    assert [each.channels for each in await models.models(run_id)][2] == ["production"]
    assert (await models.roll_back("production")).version == 1
    assert (await models.roll_back("production")).version == 0
    assert await refusal_of(models.roll_back("production")) is Code.WRONG_STATE
    steps = await models.history("production")
    assert [(step.what, step.version) for step in steps] == [
        ("promoted", 0),
        ("promoted", 1),
        ("promoted", 2),
        ("rolled_back", 1),
        ("rolled_back", 0),
    ]
    [now] = await models.channels()
    assert (now.channel, now.version) == ("production", 0)
    log = await world.log(run_id)
    assert (log.count("model_promoted"), log.count("model_rolled_back")) == (3, 2)


async def test_wrong_wishes_are_refused(world: World) -> None:
    run_id = await finished(world)
    models = catalogue(world)
    assert await refusal_of(models.promote("Production!", run_id, 1)) is Code.RESERVED_NAME
    assert await refusal_of(models.promote("production", run_id, 9)) is Code.UNKNOWN_BLOB
    assert await refusal_of(models.promote("production", "absent", 1)) is Code.UNKNOWN_RUN
    assert await refusal_of(models.roll_back("production")) is Code.WRONG_STATE
    assert await models.channels() == []


async def test_without_a_metric_none_is_the_best(world: World) -> None:
    world.fleet.records = world.fleet.records[:2]
    run_id = await world.start(task(rounds=1, size=2).replace("[evaluation]", '[evaluation]\nbest = "rouge"'))
    await report_all(world, run_id, 1)
    await world.ended(run_id)
    assert await refusal_of(catalogue(world).promote("production", run_id, None)) is Code.UNKNOWN_BLOB
