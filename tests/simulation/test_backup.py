"""A back-up taken in the middle of a run: the restored aggregator abandons what was open, and goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aggregator import backup, restore
from aggregator.founding import Ports, found_fleet
from aggregator.store import rounds
from tests.simulation.masked_world import MaskedWorld, masked_task
from tests.simulation.world import World, counted, task


def found(folder: Path) -> Path:
    """A fleet whose state directory a world can be made on."""
    found_fleet(folder, "home", "192.0.2.1", Ports(), 1_600_000_000_000)
    return folder / "state"


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path, Path]:
    return tmp_path / "home", tmp_path / "other", tmp_path / "home.tar"


def restore_later(world: World, archive: Path, other: Path) -> None:
    world.clock.advance(1_000_000)
    restore.restore(archive, other, world.clock())


async def ids(world: World, run_id: str) -> list[int]:
    return [r.round_id for r in (await world.runs.show(run_id)).rounds]


async def test_run_goes_on_from_the_backup_with_ids_that_nobody_has_seen(
    homes: tuple[Path, Path, Path],
) -> None:
    home, other, archive = homes
    world = World(found(home))
    run_id = await world.start(task(rounds=3))
    cohort = await world.cohort(4)
    for client_id in cohort:
        await world.report(client_id)
    await world.phase(run_id, "collecting", 2)
    for client_id in cohort[:2]:
        await world.report(client_id, nth=2)
    backup.back_up(home / "aggregator.toml", archive, world.clock(), with_keys=False)

    for client_id in cohort[2:]:  # what happens after the back-up is lost
        await world.report(client_id, nth=2)
    await world.phase(run_id, "collecting", 3)
    before = await ids(world, run_id)
    await world.close()

    restore_later(world, archive, other)
    again = World(other / "state", clock=world.clock)
    await again.runs.resume_all()
    rounds_now = (await again.runs.show(run_id)).rounds
    assert [(r.state, r.reason) for r in rounds_now[:2]] == [
        ("committed", ""),
        ("abandoned", "the aggregator was restored from a back-up"),
    ]
    for nth in (1, 2):
        for client_id in await again.cohort(4):
            await again.report(client_id, nth)
    info = await again.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)
    assert await again.weights(run_id) == pytest.approx([3 * value for value in counted(cohort)])
    new = [r.round_id for r in info.rounds if r.round_id not in before]
    assert len(new) == 2
    assert min(new) > max(before), "an id that a device may have seen came again"
    assert "aggregator_restored" in await again.log(run_id)
    await again.close()


async def test_ids_given_in_the_same_second_as_the_backup_do_not_come_again(
    homes: tuple[Path, Path, Path],
) -> None:
    """Ids rise by at least one and start at the clock's seconds: a later second is behind all of them."""
    home, other, archive = homes
    world = World(found(home))
    run_id = await world.start(task(rounds=50, size=1, minimum=1))
    backup.back_up(home / "aggregator.toml", archive, world.clock(), with_keys=False)
    await world.close()
    restore.restore(archive, other, world.clock() + 10_000)
    again = World(other / "state")
    later = world.clock() + 10_000
    given = await again.database.run(lambda c: rounds.next_id(c, later))
    assert given >= later // 1000 > max(await ids(again, run_id), default=0)
    await again.close()


async def test_masked_run_starts_a_new_key_epoch(homes: tuple[Path, Path, Path]) -> None:
    home, other, archive = homes
    world = MaskedWorld(found(home))
    for client in world.clients[4:]:
        client.leaves_before = "report"
    run_id = await world.begin(masked_task())
    await world.happened("report_arrived", 4)
    backup.back_up(home / "aggregator.toml", archive, world.clock(), with_keys=False)
    old = await world.key_epochs(run_id)
    assert [epoch.ended_at_ms for epoch in old] == [0]
    await world.close()

    restore_later(world, archive, other)
    again = MaskedWorld(other / "state", clock=world.clock)
    ended = await again.key_epochs(run_id)
    assert [epoch.epoch for epoch in ended] == [epoch.epoch for epoch in old]
    assert all(epoch.ended_at_ms for epoch in ended)
    await again.runs.resume_all()
    again.launch()
    info = await again.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    assert (await again.key_epochs(run_id))[-1].epoch > old[-1].epoch
    await again.close()


async def test_backup_while_reports_come_is_whole(homes: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """One back-up after each step: every one of them can be restored and is some moment of the run."""
    home, _, _ = homes
    world = World(found(home))
    run_id = await world.start(task(rounds=1))
    archives = []
    for number, client_id in enumerate(await world.cohort(4)):
        archives.append(tmp_path / f"{number}.tar")
        backup.back_up(home / "aggregator.toml", archives[-1], world.clock(), with_keys=False)
        await world.report(client_id)
    await world.ended(run_id)
    await world.close()
    for archive in archives:
        restore.restore(archive, tmp_path / "again", world.clock() + 1_000_000)
        again = World(tmp_path / "again" / "state")
        assert [r.state for r in (await again.runs.show(run_id)).rounds] == ["abandoned"]
        await again.close()
        shutil.rmtree(tmp_path / "again")
