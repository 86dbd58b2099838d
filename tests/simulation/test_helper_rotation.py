"""The helper's key is replaced while a round is in flight: it opens whatever was sealed, until the old one is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedless.protocol.crypto import x25519_public
from tests.simulation.helper_world import CLIENTS, HPKE_PRIVATE, HelperWorld, helper_task, mean_of

NEW = bytes(range(7, 39))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HelperWorld]:
    made = HelperWorld(tmp_path)
    yield made
    await made.close()


def holds(world: HelperWorld, *keys: bytes) -> None:
    world.calls.helper = replace(world.calls.helper, hpke=lambda: keys)


async def test_round_in_flight_is_opened_though_rounds_are_opened_for_the_next_key(
    world: HelperWorld,
) -> None:
    run_id = await world.start(helper_task())
    counted = (await world.cohort(CLIENTS))[:8]
    for client_id in counted[:5]:
        await world.take_part(client_id)
    holds(world, HPKE_PRIVATE, NEW)
    world.calls.party = replace(world.calls.party, key=x25519_public(NEW))
    for client_id in counted[5:]:
        await world.take_part(client_id)
    info = await world.ended(run_id)
    assert (info.state, await world.mean(run_id)) == ("finished", mean_of(counted))


async def test_round_for_a_key_that_was_given_up_is_refused_by_name(world: HelperWorld) -> None:
    run_id = await world.start(helper_task())
    holds(world, NEW)
    for client_id in (await world.cohort(CLIENTS))[:8]:
        await world.take_part(client_id)
    round_ = await world.phase(run_id, "abandoned")
    assert round_.reason.startswith("helper_key")
