"""Differential privacy in whole rounds: noise in the model, a ledger that survives any crash, a budget that holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, select

from aggregator import backup, ledger, restore
from aggregator.founding import Ports, found_fleet
from aggregator.privacy import CLIP, CLIPPED_SHARE, EPSILON, EPSILON_PLD, NOISE
from aggregator.store import privacy as store
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.privacy import next_clip
from tests.simulation.helper_world import HelperWorld
from tests.simulation.masked_world import MaskedWorld, masked_task
from tests.simulation.world import World, counted, task

FAINT = 0.02
"""A noise multiplier with which one still sees who was counted."""
FIGURES = {EPSILON, NOISE, CLIP}  # of faint noise no tighter accounting: it would take too long


def private(
    toml: str, noise: str = "server", multiplier: float = FAINT, clip: float = 1.0, more: str = ""
) -> str:
    toml = toml.replace("max_examples = 1000", "")
    return f'{toml}\n[privacy]\nnoise = "{noise}"\nmultiplier = {multiplier}\nclip = {clip}\n{more}\n'


@pytest.fixture(scope="module", autouse=True)
def accounting() -> None:
    """Its first import takes longer than a test waits for a run on a busy machine."""
    ledger.epsilon_of(1.0, 1e-5)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.close()


@pytest.fixture
async def masked(tmp_path: Path) -> AsyncIterator[MaskedWorld]:
    found = MaskedWorld(tmp_path)
    yield found
    await found.close()


@pytest.fixture
async def helped(tmp_path: Path) -> AsyncIterator[HelperWorld]:
    found = HelperWorld(tmp_path)
    yield found
    await found.close()


async def charged(world: World, unit: str = "client") -> Mapping[str, float]:
    return await world.database.run(lambda c: store.spent(c, unit))


async def seeds(world: World) -> list[bytes]:
    def work(connection: Connection) -> list[bytes]:
        return list(connection.scalars(select(store.noise_seeds.c.seed)))

    return await world.database.run(work)


async def all_report(world: World, nth: int = 1) -> list[str]:
    clients = [record.client_id for record in world.fleet.records]
    for client_id in clients:
        await world.report(client_id, nth, examples=1)
    return clients


def is_noised(weights: list[float], exact: list[float], deviation: float) -> None:
    """Off by the noise, but by no more."""
    error = np.array(weights) - np.array(exact)
    assert np.abs(error).max() < 8 * deviation
    assert error.std() > deviation / 4


# -- the noise is in the model, and nothing else says anything


async def test_plain_round_gets_the_aggregators_noise_and_no_figure_without(world: World) -> None:
    run_id = await world.start(private(task()), None)
    clients = await all_report(world)
    info = await world.ended(run_id)
    assert info.state == "finished"
    is_noised(await world.weights(run_id), counted(clients), FAINT / 4)
    assert set(info.rounds[0].metrics) == FIGURES
    assert info.rounds[0].metrics[EPSILON] == pytest.approx(ledger.epsilon_of(1 / FAINT**2, 1e-5))
    assert await charged(world) == {client_id: pytest.approx(1 / FAINT**2) for client_id in clients}
    assert await seeds(world) == [b""]  # nobody takes the noise off again


async def test_long_update_is_clipped_by_the_aggregator(world: World) -> None:
    await world.start(private(task(size=2, minimum=2), clip=0.5, more="adaptive = true"), None)
    first, second = await world.cohort(2)
    await world.check_in(first)
    await world.send(first, (1000 * np.eye(16, dtype="<f4")[3]).tobytes(), examples=1)
    await world.check_in(second)
    await world.send(second, (0.25 * np.eye(16, dtype="<f4")[5]).tobytes(), examples=1)
    run_id = (await world.runs.list())[0].run_id
    info = await world.ended(run_id)
    weights = await world.weights(run_id)
    assert weights[3] == pytest.approx(0.25, abs=0.05)
    assert weights[5] == pytest.approx(0.125, abs=0.05)
    assert info.rounds[0].metrics[CLIPPED_SHARE] == pytest.approx(0.5, abs=0.5)


async def test_clip_follows_the_noised_share_of_clipped_updates(world: World) -> None:
    run_id = await world.start(private(task(rounds=2), clip=0.25, more="adaptive = true"), None)
    await all_report(world)
    await world.phase(run_id, "committed")
    await all_report(world, 2)
    info = await world.ended(run_id)
    first, second = (each.metrics for each in info.rounds)
    assert first[CLIP] == 0.25
    assert first[CLIPPED_SHARE] == pytest.approx(1.0, abs=0.4)  # unit vectors: all were
    assert second[CLIP] == pytest.approx(next_clip(0.25, first[CLIPPED_SHARE], 0.5, 0.2))
    assert second[CLIP] > 0.25


@pytest.mark.parametrize("noise", ["distributed", "server"])
async def test_pairwise_round_has_the_noise(masked: MaskedWorld, noise: str) -> None:
    run_id = await masked.begin(private(masked_task(), noise, more="adaptive = true"))
    info = await masked.ended(run_id)
    assert info.state == "finished"
    of_clients = {name for name in info.rounds[0].metrics if not name.startswith("test_")}
    clients = [each.id for each in masked.clients]
    exact = [1 / 8] * 8 + [0.0] * 8
    is_noised(await masked.weights(run_id), exact, FAINT / 8)
    assert of_clients == FIGURES | {CLIPPED_SHARE}
    assert set(await charged(masked)) == set(clients)
    (round_,) = await masked.masked(run_id)
    encoding = round_.open.encoding
    assert (encoding.member_sigma > 0, encoding.server_sigma > 0) == (
        noise == "distributed",
        noise == "server",
    )
    multiplier = encoding.noise_multiplier(round_.open.min_alive)
    assert multiplier == pytest.approx(FAINT if noise == "distributed" else 0.0, rel=1e-3)
    assert await seeds(masked) == ([b""] if noise == "server" else [])


async def test_helper_adds_the_noise(helped: HelperWorld) -> None:
    size = len(helped.fleet.records)
    run_id = await helped.start(private(task(size=size, mode="helper"), "helper"), None)
    for record in helped.fleet.records:
        await helped.take_part(record.client_id)
    info = await helped.ended_in_time(run_id)
    assert info.state == "finished", info.reason
    exact = [1 / size] * size + [0.0] * (16 - size)
    is_noised(await helped.weights(run_id), exact, FAINT / size)
    assert await seeds(helped) == []


async def test_local_noise_is_charged_by_example_and_silences_the_figures(world: World) -> None:
    """The clients add it themselves: here they report as before, but each weighs the same and tells no loss."""
    run_id = await world.start(
        private(task(), "local", 1.0).replace("[client]", "[client]\nlocal_epochs = 3"), None
    )
    clients = await all_report(world)
    info = await world.ended(run_id)
    assert await world.weights(run_id) == counted(clients)
    assert set(info.rounds[0].metrics) == FIGURES | {EPSILON_PLD}
    assert await charged(world) == {}
    assert await charged(world, "example") == dict.fromkeys(clients, 3.0)


# -- the budget


def budget(rounds: float) -> str:
    """An epsilon that just so many rounds with z = 1 keep within."""
    return f"epsilon = {ledger.epsilon_of(rounds, 1e-5) + 1e-6}"


async def test_run_stops_by_name_before_the_round_that_would_pass_the_budget(world: World) -> None:
    run_id = await world.start(private(task(rounds=9), multiplier=1.0, more=budget(2)), None)
    await all_report(world)
    await world.phase(run_id, "committed")
    await all_report(world, 2)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 2)
    assert info.reason.startswith("privacy_budget: the next round would bring 4 of 4 clients past epsilon")
    assert info.rounds[-1].metrics[EPSILON_PLD] == pytest.approx(ledger.tighter_epsilon_of(2.0, 1e-5))
    assert [each.metrics[EPSILON] for each in info.rounds] == sorted(
        each.metrics[EPSILON] for each in info.rounds
    )
    again = await world.start(private(task(rounds=9), multiplier=1.0, more=budget(2)), None)
    info = await world.ended(again)
    assert (info.model_version, info.rounds) == (0, ())  # a new run is no new budget
    assert info.reason.startswith("privacy_budget")


async def test_client_without_budget_is_not_selected_and_the_others_go_on(world: World) -> None:
    await world.database.run(
        lambda c: store.charge(c, 7, "earlier", ["client-1"], unit="client", spend=2, at_ms=1)
    )
    run_id = await world.start(private(task(size=4, minimum=3), multiplier=1.0, more=budget(2)), None)
    selected = await world.cohort(3)
    assert sorted(selected) == ["client-0", "client-2", "client-3"]
    for client_id in selected:
        await world.report(client_id, examples=1)
    assert (await world.ended(run_id)).state == "finished"


async def test_budget_exceeded_meanwhile_by_another_run_abandons_the_round_unopened(world: World) -> None:
    run_id = await world.start(private(task(), multiplier=1.0, more=budget(2)), None)
    await world.cohort(4)
    await world.database.run(
        lambda c: store.charge(c, 7, "other", ["client-1"], unit="client", spend=1.5, at_ms=1)
    )
    await all_report(world)
    info = await world.phase(run_id, "abandoned")
    assert info.reason.startswith("privacy_budget") or Code.PRIVACY_BUDGET.sentence in info.reason
    assert await charged(world) == {"client-1": 1.5}
    assert await seeds(world) == []


async def test_private_task_that_would_send_something_without_noise_is_refused(world: World) -> None:
    for toml, why in (
        (private(task(devices=2)), "without noise"),
        (private(task(), "distributed"), "mode pairwise"),
        (private(task(), "helper"), "mode helper"),
        (private(task(top='strategy = "median"')), "single updates"),
    ):
        with pytest.raises(PeerError) as refusal:
            await world.start(toml, None)
        assert refusal.value.code is Code.CONFIG_INVALID
        assert why in refusal.value.detail


# -- kill -9


async def test_kill_after_charging_counts_once_and_gives_the_same_noise(masked: MaskedWorld) -> None:
    """Record, then speak: the charge is durable before the sum is opened, and the seed of its noise with it."""
    masked.kill_after("privacy_charged", 1)
    run_id = await masked.begin(private(masked_task(), "server"))
    await masked.die()
    (seed,) = await seeds(masked)
    info = await masked.ended(run_id)
    assert len(seed) == 32
    assert info.state == "finished"
    assert await masked.counted("privacy_charged") == 1
    spent = await charged(masked)
    assert len(spent) == 8
    assert set(spent.values()) == {1 / FAINT**2}


async def test_round_abandoned_after_the_unmask_request_stays_charged(masked: MaskedWorld) -> None:
    """Nobody knows whether its sum was seen."""
    for each in masked.clients[:5]:
        each.leaves_before = "unmask"
    run_id = await masked.begin(private(masked_task(abandon_limit=1), "distributed", 1.0))
    await masked.happened("unmask_requested")
    await masked.pass_time(60_000)
    info = await masked.until(lambda: _over(masked, run_id))
    assert info.rounds[0].state == "abandoned"
    assert len(await charged(masked)) == 8
    assert info.rounds[0].metrics[EPSILON] > 0


async def _over(world: MaskedWorld, run_id: str) -> Any:
    world.clock.advance(1_000)
    info = await world.runs.show(run_id)
    return info if info.state != "running" else None


# -- restored back-ups


@pytest.mark.parametrize("budgeted", [True, False])
async def test_restored_backup_charges_the_most_that_may_have_been_spent_since(
    tmp_path: Path, *, budgeted: bool
) -> None:
    """A round that the back-up does not know is in no ledger; so as many as there can have been are charged."""
    home, other, archive = tmp_path / "home", tmp_path / "other", tmp_path / "home.tar"
    found_fleet(home, "home", "192.0.2.1", Ports(), 1_600_000_000_000)
    world = World(home / "state")
    toml = private(task(rounds=3), multiplier=1.0, more=budget(4) if budgeted else "")
    run_id = await world.start(toml, None)
    await all_report(world)
    await world.phase(run_id, "collecting", 2)
    backup.back_up(home / "aggregator.toml", archive, world.clock(), with_keys=False)
    await all_report(world, 2)  # lost with the disk, but seen by the world
    await world.phase(run_id, "collecting", 3)
    known = await charged(world)
    await world.close()
    world.clock.advance(1_000_000)
    restore.restore(archive, other, world.clock())
    again = World(other / "state", clock=world.clock)
    restored = await charged(again)
    # Two models are left, each at the cost of two rounds that may be abandoned in a row; with a budget at most that.
    assert restored == {client_id: pytest.approx(4.0 if budgeted else 1.0 + 2 * 2) for client_id in known}
    assert all(restored[client_id] >= known[client_id] for client_id in known)
    await again.runs.resume_all()
    if budgeted:
        info = await again.ended(run_id)
        assert (info.state, info.model_version) == ("finished", 1)
        assert info.reason.startswith("privacy_budget")
    else:
        assert len(await again.cohort(4)) == 4  # it goes on, and shows what it may have cost
    await again.close()
