"""What every test shares: quiet TensorFlow, hypothesis without a stopwatch, free loopback ports."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.objects import ObjectServer
    from tests.postgresql import Server

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when tensorflow is imported
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Two shared cores: a deadline would test the machine. Derandomised where CI=true, so that a red run repeats.
LONG = "FEDLESS_LONG" in os.environ
"""Whether the tests marked `long` run, and the random ones try more: `make test-long`."""
settings.register_profile("fedless", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("fedless")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves what takes long to a target of its own."""
    if item.get_closest_marker("long") and not LONG:
        pytest.skip("minutes of processes: make test-long")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One real PostgreSQL server for all tests of this process that want one, started by the first of them."""
    from tests.postgresql import started

    server = started(_ports())
    yield server
    server.remove()


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """One real server that speaks S3 for all tests of this process that want one; each has buckets of its own."""
    from tests.objects import started

    server = started(tmp_path_factory.mktemp("objects"))
    yield server
    server.stop()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Give a function that returns a loopback TCP port that was free a moment ago, a new one each time."""
    return _ports()


def _ports() -> Callable[[], int]:
    given: set[int] = set()

    def take() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in given:
                given.add(port)
                return port

    return take
