"""PostgreSQL killed in the middle of a round: the aggregator waits, and nothing accepted is lost or counted twice."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aggregator.store.engine import Database
from fedless.protocol.errors import Code
from tests.postgresql import Server, started
from tests.simulation.world import World, counted, refusal_of, task

pytestmark = pytest.mark.real


def some_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = started(some_port)
    yield running
    running.remove()


class ImpatientDatabase(Database):
    """Does not wait as long as the real one."""

    @classmethod
    def open(cls, url: str, **_given: Any) -> Database:
        return Database.open(url, wait_s=0.3)


class ImpatientWorld(World):
    DATABASE: ClassVar[type[Database]] = ImpatientDatabase


@pytest.fixture
async def world(server: Server, tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, url=server.url())
    yield made
    await made.close()


async def test_server_killed_between_reports_is_waited_for(world: World, server: Server) -> None:
    run_id = await world.start(task(rounds=1, size=4, minimum=4))
    cohort = await world.cohort(4)
    await world.report(cohort[0])
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    reporting = [asyncio.create_task(world.report(client_id)) for client_id in cohort[1:]]
    done, _ = await asyncio.wait(reporting, timeout=0.5)
    assert not done, "nobody is told that a report is accepted before it is written down"
    await asyncio.to_thread(server.start)
    await asyncio.wait_for(asyncio.gather(*reporting), 60)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)


async def test_server_and_aggregator_killed_together(world: World, server: Server) -> None:
    run_id = await world.start(task(rounds=1, size=4, minimum=4))
    cohort = await world.cohort(4)
    for client_id in cohort[:2]:
        await world.report(client_id)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    lost = asyncio.create_task(world.report(cohort[2]))  # asked, and never answered
    await asyncio.sleep(0.05)
    await world.crash()
    assert lost.done()
    await asyncio.to_thread(server.start)
    world.reopen()
    await world.runs.resume_all()
    for client_id in cohort:
        await world.report(client_id)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)


async def test_a_round_goes_on_after_a_server_that_was_away_for_too_long(
    server: Server, tmp_path: Path
) -> None:
    """Clients are told to come again; what was refused is not half done in memory."""
    world = ImpatientWorld(tmp_path, url=server.url())
    run_id = await world.start(task(rounds=1, size=2))
    cohort = await world.cohort(2)
    await world.report(cohort[0])
    await world.check_in(cohort[1])
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    assert await refusal_of(world.report(cohort[1])) is Code.STORE_UNREACHABLE
    await asyncio.to_thread(server.start)
    await world.report(cohort[1])
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)
    await world.close()
