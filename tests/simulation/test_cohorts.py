"""A selection that is split into cohorts: a key epoch, a sum and a threshold for each, one round over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from aggregator import tasks
from aggregator.masked import split
from aggregator.store.masks import KeyEpoch
from fedless.protocol.errors import Code
from tests.simulation.masked_world import DEADLINE_MS, SETUP_MS, UNMASK_MS, MaskedWorld, masked_task

SPLIT = "cohort_size = 8\n"


@pytest.fixture
def make(tmp_path: Path) -> Callable[[int], MaskedWorld]:
    """A world with so many clients, and as many parameters."""
    return lambda count: MaskedWorld(tmp_path, count=count, parameters=count)


def split_task(size: int = 24, minimum: int = 0, **changes: int) -> str:
    return masked_task(size=size, minimum=minimum, secagg=SPLIT, **changes)


async def cohorts(world: MaskedWorld, run_id: str, count: int = 3) -> list[KeyEpoch]:
    """The run's first key epochs, as soon as there are so many."""

    async def opened() -> list[KeyEpoch] | None:
        found = await world.key_epochs(run_id)
        return found if len(found) >= count else None

    found: list[KeyEpoch] = await world.until(opened)
    return found[:count]


async def begin_without(world: MaskedWorld, toml: str, step: str, count: int) -> tuple[str, list[str]]:
    """A run in which `count` clients of the second cohort leave before a step; the clients of that cohort."""
    run_id = await world.start(toml)
    of_second = sorted((await cohorts(world, run_id))[1].cohort)
    for client in world.clients:
        if client.id in of_second[:count]:
            client.leaves_before = step
    world.launch()
    return run_id, of_second


def everybody_but(world: MaskedWorld, clients: Sequence[str]) -> list[str]:
    return [client.id for client in world.clients if client.id not in clients]


async def test_a_fleet_of_24_in_three_cohorts_of_8(make: Callable[[int], MaskedWorld]) -> None:
    world = make(24)
    run_id = await world.begin(split_task(rounds=3))
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)
    await world.shared(run_id, [client.id for client in world.clients], rounds=3)
    assert [len(epoch.members) for epoch in await world.key_epochs(run_id)] == [8] * 6
    first = (await world.key_epochs(run_id))[:3]
    assert len({client for epoch in first for client in epoch.members}) == 24, "nobody is in two cohorts"
    assert [(r.metrics["cohorts"], r.metrics["cohorts_abandoned"]) for r in info.rounds] == [(3.0, 0.0)] * 3
    assert info.rounds[0].metrics["train_examples"] == 240
    assert info.rounds[0].metrics["train_loss"] == pytest.approx(309 / 24, abs=1e-3), "none above 20"
    await world.close()


@pytest.mark.long
async def test_a_selection_of_more_than_128(make: Callable[[int], MaskedWorld]) -> None:
    """132 clients, two of one cohort gone after they shared their keys: the sums hold the other 130."""
    world = make(132)
    run_id = await world.start(masked_task(size=132, secagg="cohort_size = 11\n"))
    found = await cohorts(world, run_id, 12)
    assert [len(epoch.cohort) for epoch in found] == [11] * 12
    gone = sorted(found[0].cohort)[:2]
    for client in world.clients:
        client.leaves_before = "admit" if client.id in gone else ""
    world.launch()
    await world.happened("report_arrived", 130)
    await world.pass_time(DEADLINE_MS)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    await world.shared(run_id, everybody_but(world, gone))
    await world.close()


@pytest.mark.parametrize(
    ("size", "secagg", "sizes"),
    [
        (128, "", [128]),
        (129, "", [65, 64]),
        (300, "", [100, 100, 100]),
        (24, SPLIT, [8, 8, 8]),
        (23, SPLIT, [12, 11]),
        (9, SPLIT, [9]),
        (40, "cohort_size = 10\nminimum = 10\n", [10] * 4),
    ],
)
def test_how_a_selection_is_split(size: int, secagg: str, sizes: list[int]) -> None:
    settings = tasks.parse(masked_task(size=size, secagg=secagg))
    assert settings.cohort_sizes(1000) == sizes


def test_nobody_is_left_out_of_the_cohorts_or_in_two() -> None:
    clients = [f"client-{number}" for number in range(25)]
    parts = split(clients, 3, bytes(32))
    assert sorted(client for part in parts for client in part) == sorted(clients)
    assert [len(part) for part in parts] == [9, 8, 8]
    assert split(clients, 3, bytes(31) + b"1") != parts, "the draw decides who is with whom"


async def test_members_weigh_as_their_examples_across_cohorts(make: Callable[[int], MaskedWorld]) -> None:
    world = make(16)
    for client in world.clients:
        client.examples = 10 + 7 * client.number
    run_id = await world.begin(split_task(size=16))
    await world.ended(run_id)
    total = sum(client.examples for client in world.clients)
    weights = await world.weights(run_id)
    assert weights == pytest.approx([client.examples / total for client in world.clients], abs=2e-6)
    await world.close()


@pytest.mark.parametrize("step", ["inbox", "report"])
async def test_a_cohort_below_its_threshold_is_abandoned_by_name_and_the_others_count(
    make: Callable[[int], MaskedWorld], step: str
) -> None:
    world = make(24)
    run_id, second = await begin_without(world, split_task(), step, 3)
    await world.happened("report_arrived", 21)
    await world.pass_time(DEADLINE_MS)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    await world.shared(run_id, everybody_but(world, second))
    [abandoned] = [r for r in await world.masked(run_id) if r.result is not None and r.result.reason]
    world.nothing_revealed(abandoned)
    assert abandoned.result is not None
    assert abandoned.result.reason == Code.TOO_FEW.value
    assert await world.counted("cohort_abandoned") == 1
    assert await world.counted("unmask_requested") == 2
    assert info.rounds[0].losses["cohort_abandoned"] == 5, "reported, and said not to count"
    assert info.rounds[0].reported == 16
    await world.close()


async def test_a_cohort_whose_holders_do_not_answer_is_left_out(make: Callable[[int], MaskedWorld]) -> None:
    world = make(24)
    run_id, second = await begin_without(world, split_task(), "unmask", 3)
    await world.happened("unmask_answered", 17)  # five, and as many of the others as it takes at least
    await world.pass_time(UNMASK_MS)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    await world.shared(run_id, everybody_but(world, second))
    [abandoned] = [r for r in await world.masked(run_id) if r.result is not None and r.result.reason]
    assert abandoned.result is not None
    assert abandoned.result.sum_digest == b""
    assert all(answer.shares == b"" for answer in abandoned.responses)
    await world.close()


async def test_the_tasks_minimum_is_not_met_by_the_cohorts_that_are_left(
    make: Callable[[int], MaskedWorld],
) -> None:
    world = make(24)
    toml = split_task(minimum=20, abandon_limit=1)
    run_id, _ = await begin_without(world, toml, "report", 3)
    await world.happened("report_arrived", 21)
    await world.pass_time(DEADLINE_MS)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("failed", 0)
    said = "too_few: 21 reports of at least 20 in 3 cohorts, of which 2 can be opened and 1 must be, at the deadline"
    assert info.rounds[0].reason == said
    for masked in await world.masked(run_id):
        world.nothing_revealed(masked)
    await world.close()


async def test_a_cohort_that_nobody_joins_does_not_stop_the_others(
    make: Callable[[int], MaskedWorld],
) -> None:
    """It is tried again with the others' next key epochs, not in each round: that would cost a window each time."""
    world = make(24)
    run_id, second = await begin_without(world, split_task(rounds=3), "keys", 8)
    await world.happened("key_epoch_active", 2)
    await world.pass_time(SETUP_MS)
    await world.happened("model_committed", 1)
    for client in world.clients:
        if client.id in second:
            client.come_back()
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)
    tried = [len(epoch.members or epoch.cohort) for epoch in await world.key_epochs(run_id)]
    assert tried == [8] * 6
    assert [r.metrics["cohorts"] for r in info.rounds] == [2, 3, 3]
    await world.close()


STEPS = [
    ("key_epoch_opened", 2),
    ("roster_made", 1),
    ("key_epoch_active", 1),
    ("cohort_selected", 1),
    ("report_arrived", 16),
    ("unmask_requested", 1),
    ("unmask_answered", 9),
    ("model_committed", 1),
]


@pytest.mark.parametrize(("event", "times"), STEPS)
async def test_kill_behind_every_step_of_a_split_round(
    make: Callable[[int], MaskedWorld], event: str, times: int
) -> None:
    world = make(16)
    world.kill_after(event, times)
    beginning = asyncio.create_task(world.begin(split_task(size=16)))
    await world.die()
    assert beginning.done()
    [info] = await world.runs.list()
    info = await world.ended(info.run_id)
    assert (info.state, info.model_version, len(info.rounds)) == ("finished", 1, 1)
    await world.shared(info.run_id, [client.id for client in world.clients])
    assert len(await world.masked(info.run_id)) == 2
    for round_ in await world.masked(info.run_id):
        assert round_.result is not None
        assert (round_.result.survivors, round_.result.reason) == (8, "")
    await world.close()


async def test_kill_while_one_cohort_is_unmasked_and_another_abandoned(
    make: Callable[[int], MaskedWorld],
) -> None:
    """Each list of survivors is signed once, also over a restart; the abandoned cohort stays abandoned."""
    world = make(24)
    world.kill_after("unmask_answered", 5)
    run_id, second = await begin_without(world, split_task(), "report", 3)
    await world.happened("report_arrived", 21)
    await world.pass_time(DEADLINE_MS)
    await world.die()
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    assert await world.counted("unmask_requested") == 2
    await world.shared(run_id, everybody_but(world, second))
    await world.close()


async def test_group_median_over_masked_cohorts(make: Callable[[int], MaskedWorld]) -> None:
    """Each client reports another unit vector: a coordinate is 1/8 in one cohort's mean, 0 in two, and the median 0.

    Client 0 lies: it reports the last clients' coordinate, so that this is 1/8 in two cohorts unless they are one.
    """
    world = make(24)
    run_id = await world.start(split_task().replace("rounds", 'strategy = "group-median"\nrounds', 1))
    found = await cohorts(world, run_id)
    of = {client: epoch.epoch for epoch in found for client in epoch.cohort}
    liar = world.clients[0]
    other = next(client for client in world.clients if of[client.id] != of[liar.id])
    liar.reports = other.number
    world.launch()
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    expected = [0.0] * 24
    expected[other.number] = 1 / 8
    assert await world.weights(run_id) == pytest.approx(expected, abs=2e-6)
    await world.close()


async def test_group_median_with_two_cohorts_left_is_abandoned_and_nothing_is_revealed(
    make: Callable[[int], MaskedWorld],
) -> None:
    world = make(24)
    toml = split_task(abandon_limit=1).replace("rounds", 'strategy = "group-median"\nrounds', 1)
    run_id, _ = await begin_without(world, toml, "report", 3)
    await world.happened("report_arrived", 21)
    await world.pass_time(DEADLINE_MS)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("failed", 0)
    assert "of which 2 can be opened and 3 must be" in info.rounds[0].reason
    for masked in await world.masked(run_id):
        world.nothing_revealed(masked)
    await world.close()
