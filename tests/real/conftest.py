"""The fleet of one module's tests, and for each test an aggregator and a device of its own in it.

A module whose fleet is another one (masked, or `fedless aggregator serve`) has a `fleet` of its own instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_device import CLIENT
from tests.edge_fleet import FakeAggregator, Fleet


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """Keys, a bundle and a model: nothing that a test changes."""
    return Fleet()


@pytest.fixture
def aggregator(fleet: Fleet) -> Iterator[FakeAggregator]:
    aggregator = FakeAggregator(fleet)
    aggregator.start()
    yield aggregator
    aggregator.stop()


@pytest.fixture
def state(fleet: Fleet, aggregator: FakeAggregator, tmp_path: Path) -> Path:
    """The directory of a device that is enrolled."""
    return fleet.device(tmp_path / "state", CLIENT, aggregator.port)
