"""Selections that look back, through the real core: what they are told of rounds that really took place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator import stories
from aggregator.selection import SELECTIONS
from aggregator.selection.draw import History, Past
from aggregator.store import participation
from tests.simulation.world import World, metrics, task


def looking_back(name: str, **keys: Any) -> str:
    return task(**keys).replace("[cohort]", f'[cohort]\nselection = "{name}"')


async def test_a_clients_history_is_what_happened(world: World) -> None:
    run_id = await world.start(task(rounds=3, size=4, minimum=2, over_selection=1.0))
    for number in range(3):
        await world.check_in(f"client-{number}")
    world.clock.advance(5000)
    for number in range(2):
        await world.report(f"client-{number}", examples=10 + number)
    await world.phase(run_id, "grace")
    world.clock.advance(100_000)  # client-2 never reports, client-3 never comes
    await world.phase(run_id, "committed")
    for number in range(4):
        await world.report(f"client-{number}", 2)
    await world.phase(run_id, "committed", 2)
    await world.ticket("client-0", 3)
    found = await world.database.run(lambda c: participation.histories(c, run_id))
    assert set(found) == {f"client-{number}" for number in range(4)}
    second = Past(2, reported=True, missed=False, took_ms=1, examples=10, loss=2.0)
    open_now = Past(3, reported=False, missed=False, took_ms=0, examples=0)
    first = found["client-1"].recent[2]
    assert found["client-1"] == History(3, (open_now, second, first))
    assert (first.reported, first.examples, first.took_ms) == (True, 11, 5000)
    absent = found["client-3"].recent[2]
    assert absent == Past(1, reported=False, missed=True, took_ms=0, examples=0)
    slow = found["client-2"].recent[2]
    assert (slow.reported, slow.took_ms > 5000) == (False, True)


async def test_a_selection_is_told_what_each_round_gathered(world: World) -> None:
    """Examples times mean loss, summed over the reports; a round that was abandoned is not among them."""
    run_id = await world.start(task(rounds=2, size=2, minimum=2, over_selection=1.0))
    for client_id in await world.cohort(2):
        await world.report(client_id, examples=10)
    await world.phase(run_id, "committed")
    await world.phase(run_id, "collecting", 2)
    await world.asleep()
    world.clock.advance(1_000_000)
    await world.phase(run_id, "abandoned", 2)
    assert await world.database.run(lambda c: participation.gains(c, run_id)) == [40.0]


@pytest.mark.parametrize("name", ["fedlesscan", "apodotiko"])
async def test_everybody_has_a_turn_before_anybody_has_a_second(tmp_path: Path, name: str) -> None:
    world = World(tmp_path, count=6)
    run_id = await world.start(looking_back(name, rounds=3, size=2))
    seen: list[str] = []
    for number in (1, 2, 3):
        cohort = await next_cohort(world, len(seen) + 2, seen)
        for client_id in cohort:
            await world.report(client_id)
        seen += cohort
        await world.phase(run_id, "committed", number)
        await world.restart()
    await world.ended(run_id)
    assert sorted(seen) == [f"client-{number}" for number in range(6)]
    await world.close()


@pytest.mark.parametrize("name", ["fedlesscan", "apodotiko"])
async def test_a_client_that_never_came_is_not_asked_again_at_once(tmp_path: Path, name: str) -> None:
    """Both clients of the second round are among those who did their work, or were never asked."""
    world = World(tmp_path, count=3)
    run_id = await world.start(looking_back(name, rounds=2, size=2, minimum=1))
    there, away = await world.cohort(2)
    await world.report(there)
    await world.phase(run_id, "grace")
    world.clock.advance(100_000)
    await world.phase(run_id, "committed")
    (third,) = {record.client_id for record in world.fleet.records} - {there, away}
    await world.report(third)
    await world.report(there, 2)
    await world.ended(run_id)
    assert len(world.waker.tickets(away)) == 1
    await world.close()


async def next_cohort(world: World, wanted: int, seen: list[str]) -> list[str]:
    """Who has a ticket now and had none before, as soon as so many have one."""

    async def woken() -> list[str] | None:
        found = [record.client_id for record in world.fleet.records if world.waker.tickets(record.client_id)]
        return [client_id for client_id in found if client_id not in seen] if len(found) >= wanted else None

    found: list[str] = await world.until(woken)
    return found


async def test_only_clients_with_the_tasks_labels_take_part(tmp_path: Path) -> None:
    world = World(tmp_path, count=6)
    north = {"site": "north"}
    world.fleet.records = [
        replace(record, labels=north | {"gpu": "no"} if number % 2 else {"site": "south"})
        for number, record in enumerate(world.fleet.records)
    ]
    run_id = await world.start(
        task(rounds=1, size=3, minimum=3).replace("[cohort]", '[cohort]\nlabels = {site = "north"}')
    )
    cohort = await next_cohort(world, 3, [])
    assert sorted(cohort) == ["client-1", "client-3", "client-5"]
    for client_id in cohort:
        await world.report(client_id)
    await world.ended(run_id)
    await world.close()


@pytest.mark.parametrize("name", SELECTIONS)
async def test_a_client_that_fails_again_and_again_is_asked_less_and_less(tmp_path: Path, name: str) -> None:
    """Everybody is wanted in each round; the broken one rests after its second failure in a row, then for longer."""
    world, asked = World(tmp_path, count=3), (1, 2, 4)
    everybody = looking_back(name, rounds=5, size=3, minimum=2, over_selection=1.0)
    run_id = await world.start(everybody.replace("size = 3", "fraction = 1.0"))
    for number in range(1, 6):
        if number in asked:
            ticket = await world.ticket("client-2", 1 + asked.index(number))
            await world.coordinator.put_metrics("client-2", metrics(ticket.round_id, "data_missing"))
        for client in range(2):
            await world.report(f"client-{client}", number)
        info = await world.phase(run_id, "committed", number)
        assert info.selected == (3 if number in asked else 2)
        if number == 3:
            await world.restart()
    await world.ended(run_id)
    story = await stories.tell(world.database, stories.Asked(run_id, 0, "client-2"), world.clock())
    assert "after failures it rests for 2 rounds more" in story.lines[4]
    await world.close()


async def test_who_is_broken_is_asked_all_the_same_where_the_others_are_too_few(tmp_path: Path) -> None:
    world = World(tmp_path, count=3)
    run_id = await world.start(task(rounds=4, size=3, minimum=2, over_selection=1.0))
    for number in range(1, 5):
        ticket = await world.ticket("client-2", number)
        await world.coordinator.put_metrics("client-2", metrics(ticket.round_id, "data_missing"))
        for client in range(2):
            await world.report(f"client-{client}", number)
        await world.phase(run_id, "committed", number)
    await world.ended(run_id)
    await world.close()


async def test_who_was_absent_from_rounds_that_were_abandoned_does_not_rest(tmp_path: Path) -> None:
    """A broker that was away for two rounds is nobody's failure: the third one asks everybody."""
    world = World(tmp_path, count=4)
    everybody = task(rounds=1, size=4, minimum=3, over_selection=1.0).replace("size = 4", "fraction = 1.0")
    run_id = await world.start(everybody.replace("abandon_limit = 2", "abandon_limit = 3"))
    for number in (1, 2):
        await world.ticket("client-0", number)
        await world.report("client-0", number)
        await world.asleep()
        world.clock.advance(1_000_000)
        await world.phase(run_id, "abandoned", number)
    for client in range(4):
        await world.report(f"client-{client}", 3)
    info = await world.ended(run_id)
    assert info.rounds[-1].reported == 4
    await world.close()
