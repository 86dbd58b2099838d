"""Old models, strategies' state and blobs that nobody needs go; what a run, an export or a new start needs stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from aggregator.blobs import Blobs
from aggregator.members import Phase
from aggregator.store import channels, retention, rounds, runs
from aggregator.store.records import ModelRecord
from aggregator.store.schema import model_state, models
from aggregator.sweep import GRACE_S, Sweep, Swept
from fedless.protocol.errors import Code
from tests.simulation.world import World, refusal_of, task, unit

STRATEGY = 'strategy = "fedadam"'


def age(blobs: Blobs, days: float = 2) -> None:
    """As if every blob had been put so long ago, by a process that is gone."""
    then = time.time() - days * 86_400
    for file in blobs._path.glob("??/*"):
        os.utime(file, (then, then))
    blobs._wanted.clear()


def sweep(world: World, keep_models: int = 0) -> Sweep:
    return Sweep(world.database, world.blobs, keep_models, clock=world.clock, sleep=world.clock.sleep)


async def swept(world: World, keep_models: int = 0) -> Swept:
    """Two sweeps with an hour between them, and what they did together."""
    age(world.blobs)
    first = await sweep(world, keep_models).once()
    world.clock.advance(retention.EXPORT_MS + 1)
    second = await sweep(world, keep_models).once()
    assert (second.models, second.states) == (0, 0)
    return Swept(first.models, first.states, first.blobs + second.blobs)


async def trained(world: World, count: int) -> str:
    """A run of that many versions, ended."""
    run_id = await world.start(task(rounds=count, size=2, top=STRATEGY))
    for _ in range(count):
        await round_of(world, run_id)
    await world.ended(run_id)
    return run_id


async def round_of(world: World, run_id: str) -> None:
    """The run's open round, reported by its cohort."""
    version = (await world.runs.show(run_id)).model_version
    round_id = await world.until(lambda: open_round(world, run_id))
    for client_id in await world.cohort(2, round_id):
        await world.report(client_id, nth=len(world.waker.tickets(client_id)))

    async def committed() -> bool:
        return (await world.runs.show(run_id)).model_version > version

    await world.until(committed)


async def open_round(world: World, run_id: str) -> int | None:
    found = [each.round_id for each in (await world.runs.show(run_id)).rounds if each.state == "collecting"]
    return found[-1] if found else None


def kept(connection: Connection) -> list[int]:
    query = select(models.c.version).where(models.c.erased_at_ms == 0).order_by(models.c.version)
    return list(connection.scalars(query))


def with_state(connection: Connection) -> set[int]:
    return set(connection.scalars(select(model_state.c.version)))


async def test_only_the_newest_versions_strategy_state_stays(world: World) -> None:
    run_id = await trained(world, 3)
    assert await world.database.run(with_state) == {1, 2, 3}
    done = await swept(world)
    assert (done.models, done.states > 0) == (0, True)
    assert await world.database.run(with_state) == {3}
    for version in range(4):
        record = await world.database.run(lambda c, v=version: runs.model(c, run_id, v))  # type: ignore[misc]
        assert world.blobs.has(record.digest), "keep_models = 0 keeps every model"
    newest = await world.database.run(lambda c: runs.newest_model(c, run_id))
    assert all(world.blobs.has(digest) for digest in newest.state.values())
    assert done.blobs == done.states


async def test_a_run_goes_on_after_each_sweep(world: World) -> None:
    """Momentum is there, models of open rounds too: as a run without sweeps ends, so does this one."""
    run_id = await world.start(task(rounds=3, size=2, top=STRATEGY))
    for _ in range(3):
        await world.until(lambda: open_round(world, run_id))
        await swept(world, keep_models=1)
        await world.restart()
        await round_of(world, run_id)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)


async def test_old_models_go_and_the_first_best_promoted_and_newest_stay(world: World) -> None:
    run_id = await trained(world, 5)

    def judge(connection: Connection) -> None:
        for number, accuracy in enumerate((0.1, 0.9, 0.9, 0.2, 0.3), start=1):
            round_id = rounds.training_round(connection, run_id, number)
            assert round_id is not None
            rounds.add_figures(connection, round_id, {"test_accuracy": accuracy})

    await world.database.run(judge)
    await world.database.run(lambda c: channels.promote(c, "stable", run_id, 1, 5))
    await world.database.run(lambda c: channels.promote(c, "stable", run_id, 4, 6))
    done = await swept(world, keep_models=1)
    assert await world.database.run(kept) == [0, 1, 2, 4, 5], "a channel may be rolled back to version 1"
    assert done.models == 1
    for version in range(6):
        record = await world.database.run(lambda c, v=version: runs.model(c, run_id, v))  # type: ignore[misc]
        assert world.blobs.has(record.digest) == (version != 3)


async def test_an_export_that_has_begun_ends(world: World) -> None:
    """What was given up just now is still there for an hour, and a file that is being read even longer."""
    run_id = await trained(world, 3)
    old = (await world.database.run(lambda c: runs.model(c, run_id, 1))).digest
    age(world.blobs)
    await sweep(world, 1).once()
    reading = world.blobs.read(old, 0, 16)
    first = await anext(reading)
    assert (await swept(world, 1)).blobs > 0
    rest = b"".join([chunk async for chunk in reading])
    assert len(first + rest) == 64
    assert await refusal_of(anext(world.blobs.read(old))) is Code.UNKNOWN_BLOB


async def test_model_of_an_open_round_stays(world: World) -> None:
    """Its clients are downloading it, however many versions came meanwhile."""
    run_id = await world.start(task(rounds=9, size=2, top=STRATEGY))
    await world.until(lambda: open_round(world, run_id))

    def newer(connection: Connection) -> None:
        for version in range(1, 5):
            model = ModelRecord(
                version, bytes([version]) * 32, version, {"momentum": bytes([9, version]) * 16}
            )
            runs.insert_model(connection, run_id, model, 1)

    def close(connection: Connection) -> None:
        [round_id] = rounds.unended(connection)
        round_ = rounds.load(connection, round_id)
        round_.state.phase = Phase.ABANDONED
        rounds.save_state(connection, round_, 1)

    await world.database.run(newer)
    first = await world.database.run(lambda c: retention.bases_of_open_rounds(c, run_id))
    assert first == {0}
    await world.database.run(lambda c: retention.give_up_models(c, 1, 1))
    assert await world.database.run(kept) == [0, 4]
    await world.runs.halt(run_id)
    await world.database.run(close)
    assert await world.database.run(lambda c: retention.bases_of_open_rounds(c, run_id)) == set()


async def test_blobs_that_were_put_and_not_named_yet_stay_for_a_day(world: World) -> None:
    lonely, _ = await world.blobs.put_bytes(b"for a run that is about to start")
    assert (await sweep(world).once()).blobs == 0
    age(world.blobs, days=0.9)
    assert (await sweep(world).once()).blobs == 0
    assert world.blobs.has(lonely)
    age(world.blobs, days=1.1)
    assert (await sweep(world).once()).blobs == 1
    assert not world.blobs.has(lonely)


async def test_a_start_between_looking_and_erasing_keeps_its_blobs(world: World) -> None:
    """The sweep has decided to erase; the run names the blobs; then the sweep gets to them."""
    bundle, _ = await world.blobs.put_bytes(b"a bundle that only the fake evaluator reads")
    initial, _ = await world.blobs.put_bytes(bytes(64))
    age(world.blobs)
    decided = {digest for digest, _ in world.blobs.stored()}
    assert decided == {bundle, initial}
    await world.runs.start(task(), bundle, initial)
    assert not any(world.blobs.erase(digest, GRACE_S) for digest in decided)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
async def test_a_kill_between_any_two_steps_of_a_sweep_loses_nothing_needed(world: World, step: int) -> None:
    run_id = await trained(world, 3)
    age(world.blobs)
    if step >= 1:
        await world.database.run(lambda c: retention.give_up_models(c, 1, world.clock()))
    if step >= 2:
        await world.database.run(retention.forget_state)
    world.clock.advance(retention.EXPORT_MS + 1)
    if step >= 3:
        needed = await world.database.run(lambda c: retention.needed(c, world.clock()))
        spare = [digest for digest, _ in world.blobs.stored() if digest not in needed]
        assert world.blobs.erase(spare[0], GRACE_S)
    await world.restart()
    await swept(world, 1)
    needed = await world.database.run(lambda c: retention.needed(c, world.clock()))
    assert needed == {digest for digest, _ in world.blobs.stored()}
    newest = await world.database.run(lambda c: runs.newest_model(c, run_id))
    assert newest.version == 3
    assert {newest.digest, *newest.state.values()} <= needed


async def test_two_runs_share_a_blob_until_neither_needs_it(world: World, tmp_path: Path) -> None:
    first = await world.start(task(size=2))
    second = await world.start(task(size=2))
    await world.runs.stop(first)
    await world.runs.stop(second)
    assert (await swept(world, 1)).blobs == 0
    initial = (await world.database.run(lambda c: runs.model(c, first, 0))).digest
    assert world.blobs.path(initial).read_bytes() == bytes(64)
    assert len(unit(0)) == 64
