"""The world of each simulation, taken down after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.simulation.masked_world import MaskedWorld
from tests.simulation.world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def masked_world(tmp_path: Path) -> AsyncIterator[MaskedWorld]:
    made = MaskedWorld(tmp_path)
    yield made
    await made.close()
