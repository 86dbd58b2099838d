"""Strategies through the real core: state over rounds and kills, under masks, and single reports from the spool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from aggregator import commit
from aggregator.store import retention, runs
from aggregator.strategies import make
from aggregator.uploads import FloatSum
from fedless.protocol.errors import PeerError
from tests.simulation.helper_world import CLIENTS, HelperWorld, helper_task
from tests.simulation.masked_world import MaskedWorld, masked_task
from tests.simulation.world import World, task, unit

MOMENTUM = 'strategy = "fedavgm"\nstrategy_options = {momentum = 0.5}'
TWO_ROUNDS, THREE_ROUNDS = 1 + 1.5, 1 + 1.5 + 1.75
"""What momentum 0.5 makes of the same mean update in each round, in means."""


@pytest.fixture
async def helper_world(tmp_path: Path) -> AsyncIterator[HelperWorld]:
    made = HelperWorld(tmp_path)
    yield made
    await made.close()


async def everybody(world: World, nth: int) -> None:
    for number in range(world.count):
        await world.report(f"client-{number}", nth)


async def test_momentum_goes_on_over_restarts(world: World) -> None:
    run_id = await world.start(task(rounds=3, top=MOMENTUM))
    for nth in (1, 2, 3):
        for number in range(4):
            await world.report(f"client-{number}", nth)
            await world.restart()
    info = await world.ended(run_id)
    assert info.model_version == 3
    assert await world.weights(run_id) == [THREE_ROUNDS / 4] * 4 + [0.0] * 12


async def test_kill_between_the_blobs_and_their_commit_applies_momentum_once(world: World) -> None:
    run_id = await world.start(task(rounds=2, top=MOMENTUM))
    await everybody(world, 1)
    await world.phase(run_id, "committed")
    await world.cohort(4, (await world.ticket("client-0", 2)).round_id)
    await world.runs.halt(run_id)  # nobody commits
    await everybody(world, 2)
    old = await world.database.run(lambda c: runs.newest_model(c, run_id))
    round_id = (await world.ticket("client-0", 2)).round_id
    (sum_,), _ = await world.coordinator.sums(round_id)
    strategy = make("fedavgm", {"momentum": 0.5})
    assert isinstance(sum_, FloatSum)
    made = commit.next_model(world.blobs, old, commit.mean_blocks(sum_, strategy), strategy, round_id)
    await world.restart()
    await world.ended(run_id)
    assert await world.database.run(lambda c: runs.newest_model(c, run_id)) == made
    assert await world.weights(run_id) == [TWO_ROUNDS / 4] * 4 + [0.0] * 12


async def test_momentum_under_pairwise_masks_and_a_kill_after_the_commit(masked_world: MaskedWorld) -> None:
    """The same numbers as in the clear, within the ring's precision; killed right behind the second commit."""
    text = masked_task(rounds=3).replace("[cohort]", f"{MOMENTUM}\n[cohort]", 1)
    masked_world.kill_after("model_committed", 2)
    run_id = await masked_world.begin(text)
    await masked_world.die()
    await masked_world.ended(run_id)
    expected = [THREE_ROUNDS / 8] * 8 + [0.0] * 8
    np.testing.assert_allclose(await masked_world.weights(run_id), expected, atol=6e-6)


async def test_adaptive_rule_under_helpers_masks(helper_world: HelperWorld) -> None:
    """The same as FedAdam's own step on the mean of those who were counted."""
    options = "strategy_options = {learning_rate = 0.5, tau = 0.5}"
    run_id = await helper_world.start(helper_task(top=f'strategy = "fedadam"\n{options}'))
    counted = (await helper_world.cohort(CLIENTS))[:8]
    for client_id in counted:
        await helper_world.take_part(client_id)
    await helper_world.ended(run_id)
    second = 0.99 * 0.25 + 0.01 / 64
    expected = 0.5 * (0.1 / 8) / (second**0.5 + 0.5)
    weights = await helper_world.weights(run_id)
    np.testing.assert_allclose(sorted(weights), [0.0] * 8 + [expected] * 8, atol=1e-6)


async def test_median_sees_the_single_reports_after_a_restart(world: World) -> None:
    """Unit vectors: three of four clients say 0 at each coordinate; the mean would be a quarter."""
    run_id = await world.start(task(rounds=1, minimum=3, top='strategy = "median"'))
    for number in range(4):
        await world.check_in(f"client-{number}")
        same = np.frombuffer(unit(9), "<f4") * (1000.0 if number == 2 else 1.0 + number)
        await world.send(f"client-{number}", same.astype("<f4").tobytes(), examples=1 + 300 * number)
        await world.restart()
    await world.ended(run_id)
    assert (await world.weights(run_id))[9] == 3.0, "the mean of 2 and 4, whatever examples they claim"


async def test_krum_refuses_a_liar_in_a_round(world: World) -> None:
    run_id = await world.start(
        task(rounds=1, minimum=4, top='strategy = "krum"\nstrategy_options = {byzantine = 0, keep = 2}')
    )
    for number, length in enumerate((1.0, 1.25, 900.0, 2.0)):
        await world.check_in(f"client-{number}")
        data = (np.frombuffer(unit(9), "<f4") * length).astype("<f4").tobytes()
        await world.send(f"client-{number}", data)
    await world.ended(run_id)
    assert (await world.weights(run_id))[9] == 1.125


async def test_robust_rules_are_refused_under_masks(masked_world: MaskedWorld) -> None:
    text = masked_task().replace("[cohort]", 'strategy = "median"\n[cohort]', 1)
    with pytest.raises(PeerError, match="single updates, which masks hide"):
        await masked_world.start(text)


async def test_a_back_up_names_the_state_of_every_version(world: World) -> None:
    run_id = await world.start(task(rounds=2, top=MOMENTUM))
    for nth in (1, 2):
        await everybody(world, nth)
    await world.ended(run_id)
    needed = await world.database.run(partial(retention.needed, now_ms=world.clock()))
    states = [
        (await world.database.run(partial(runs.model, run_id=run_id, version=v))).state for v in (0, 1, 2)
    ]
    assert [list(state) for state in states] == [[], ["momentum"], ["momentum"]]
    assert {state["momentum"] for state in states[1:]} <= needed


async def test_old_state_is_never_used_by_another_run(world: World) -> None:
    """Two runs of the same task on the same initial model: each has the momentum of its own."""
    first = await world.start(task(rounds=1, top=MOMENTUM))
    await everybody(world, 1)
    await world.ended(first)
    second = await world.start(task(rounds=1, top=MOMENTUM))
    await everybody(world, 2)
    await asyncio.wait_for(world.ended(second), 20)
    assert await world.weights(second) == await world.weights(first)
