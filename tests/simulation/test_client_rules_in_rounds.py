"""FedNova, q-FedAvg and SCAFFOLD through the real core: in the clear, and under both kinds of masks, the same model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from aggregator import tasks
from aggregator.store import runs
from fedless.protocol.errors import Code, LocalError
from tests.simulation.helper_world import CLIENTS, HelperWorld, helper_task
from tests.simulation.masked_world import MaskedWorld, masked_task
from tests.simulation.world import PARAMETERS, World, number_of, refusal_of, task, unit

SGD = 'optimizer = "sgd"\nlearning_rate = 0.5\nlocal_epochs = 2\n'
NOVA = {"normalizer": 5.0}
FAIR = {"fair_weight": 4.0}
CHANGE = -0.5


def text(toml: str, strategy: str) -> str:
    return toml.replace("[cohort]", f'strategy = "{strategy}"\n[cohort]', 1).replace(
        "[client]\n", f"[client]\n{SGD}", 1
    )


def with_change(number: int, size: int = PARAMETERS) -> bytes:
    """A unit vector as the update, and behind it as the control variate's change, times -0.5."""
    return unit(number, size) + (np.frombuffer(unit(number, size), "<f4") * np.float32(CHANGE)).tobytes()


@pytest.fixture
async def helper_world(tmp_path: Path) -> AsyncIterator[HelperWorld]:
    made = HelperWorld(tmp_path)
    yield made
    await made.close()


async def report(world: World, client_id: str, data: bytes, nth: int = 1) -> None:
    await world.check_in(client_id, nth)
    await world.send(client_id, data, nth)


@pytest.mark.parametrize(("strategy", "beside", "factor"), [("fednova", NOVA, 5.0), ("qfedavg", FAIR, 0.25)])
async def test_the_mean_is_scaled_by_what_the_clients_told(
    world: World, strategy: str, beside: dict[str, float], factor: float
) -> None:
    world.beside = beside
    run_id = await world.start(text(task(), strategy))
    for number in range(4):
        await report(world, f"client-{number}", unit(number))
        await world.restart()
    await world.ended(run_id)
    assert await world.weights(run_id) == [factor / 4] * 4 + [0.0] * 12


@pytest.mark.parametrize(
    ("strategy", "beside"), [("fednova", {"normalizer": 1e9}), ("qfedavg", {"fair_weight": 101.0})]
)
async def test_a_lie_beyond_the_bound_is_refused(
    world: World, strategy: str, beside: dict[str, float]
) -> None:
    """One such number would carry the model away; a report without it, or below 0, is refused alike."""
    await world.start(text(task(), strategy))
    await world.check_in("client-0")
    for lie in (beside, {}, dict.fromkeys(beside, -1.0)):
        world.beside = lie
        assert await refusal_of(world.send("client-0", unit(0))) is Code.OUT_OF_RANGE


async def test_the_normalizer_weighs_as_many_examples_as_its_client_has(world: World) -> None:
    """tau_eff = sum p_i tau_i: 10 and 30 examples, 2 and 6 steps: 5; the mean of the updates alike."""
    run_id = await world.start(text(task(size=2, minimum=2), "fednova"))
    chosen = await world.cohort(2)
    for client_id, examples, steps in zip(chosen, (10, 30), (2.0, 6.0), strict=True):
        world.beside = {"normalizer": steps}
        await world.check_in(client_id)
        await world.send(client_id, unit(number_of(client_id)), examples=examples)
    await world.ended(run_id)
    weights = await world.weights(run_id)
    assert [weights[number_of(client_id)] for client_id in chosen] == [5 * 0.25, 5 * 0.75]


async def test_scaffold_keeps_the_fleets_variate_over_rounds_and_restarts(world: World) -> None:
    """Two of four clients report in each round: c moves by |S|/N = 1/2 of the mean change; tickets name it."""
    run_id = await world.start(text(task(rounds=2, size=2, minimum=2), "scaffold"))
    change = np.zeros(PARAMETERS)
    for nth in (1, 2):
        chosen = await world.cohort(2) if nth == 1 else await second_cohort(world, run_id)
        for client_id in chosen:
            await report(
                world, client_id, with_change(number_of(client_id)), len(world.waker.tickets(client_id))
            )
            change[number_of(client_id)] += CHANGE / 2 / 2
            await world.restart()
        await world.phase(run_id, "committed", nth)
        model = await world.database.run(partial(runs.model, run_id=run_id, version=nth))
        assert np.fromfile(world.blobs.path(model.state["control"]), "<f4").tolist() == change.tolist()
    tickets = [world.waker.tickets(client_id)[-1] for client_id in chosen]
    first = await world.database.run(partial(runs.model, run_id=run_id, version=1))
    assert {ticket.control_digest for ticket in tickets} == {first.state["control"]}


async def second_cohort(world: World, run_id: str) -> list[str]:
    await world.phase(run_id, "collecting", 2)
    round_id = (await world.runs.show(run_id)).rounds[-1].round_id
    return await world.cohort(2, round_id)


@pytest.mark.parametrize(("strategy", "factor"), [("fednova", 5.0), ("qfedavg", 0.25), ("scaffold", 1.0)])
async def test_under_pairwise_masks_the_model_is_the_same(
    masked_world: MaskedWorld, strategy: str, factor: float
) -> None:
    run_id = await masked_world.begin(text(masked_task(rounds=2), strategy))
    await masked_world.ended(run_id)
    expected = [2 * factor / 8] * 8 + [0.0] * 8
    np.testing.assert_allclose(await masked_world.weights(run_id), expected, rtol=1e-4, atol=6e-6)
    if strategy == "scaffold":
        model = await masked_world.database.run(partial(runs.model, run_id=run_id, version=2))
        control = np.fromfile(masked_world.blobs.path(model.state["control"]), "<f4")
        np.testing.assert_allclose(control, [2 * CHANGE / 8] * 8 + [0.0] * 8, atol=6e-6)


@pytest.mark.parametrize(("strategy", "factor"), [("fednova", 5.0), ("qfedavg", 0.25), ("scaffold", 1.0)])
async def test_under_the_helpers_masks_the_model_is_the_same(
    helper_world: HelperWorld, strategy: str, factor: float
) -> None:
    run_id = await helper_world.start(text(helper_task(), strategy))
    for client_id in (await helper_world.cohort(CLIENTS))[:8]:
        await helper_world.take_part(client_id)
    await helper_world.ended(run_id)
    weights = sorted(await helper_world.weights(run_id))
    np.testing.assert_allclose(weights, [0.0] * 8 + [factor / 8] * 8, rtol=1e-4, atol=6e-6)


def test_an_optimizer_that_the_rule_does_not_fit_is_refused() -> None:
    for strategy in ("fednova", "qfedavg", "scaffold"):
        with pytest.raises(LocalError, match=f"with {strategy}, found adam"):
            tasks.parse(text(task(), strategy).replace('"sgd"', '"adam"'))
