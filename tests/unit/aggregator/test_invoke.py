"""Waking by the client's record: what a wake-up of a function returns, and what becomes an event of the run."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from aggregator.blobs import Blobs
from aggregator.interfaces import Receipt
from aggregator.invoke import Wakers
from aggregator.store import history
from aggregator.store.schema import runs
from cloud_adapters import prices
from fedless.protocol.errors import Code
from tests.edge_fleet import Fleet as Wire
from tests.edge_fleet import now_ms, wake_bytes
from tests.unit.aggregator.test_enrollment import Fleet, request_for
from tests.unit.cloud_adapters.conftest import GOOD, HANG, Platform, platform, reply

__all__ = ["platform"]
Start = Callable[..., Awaitable[Platform]]
RUN = "run-1"


class Devices:
    """The other waker."""

    def __init__(self) -> None:
        self.woken: list[str] = []

    async def wake(self, client_id: str, signed_ticket: bytes, deadline_ms: int) -> Receipt:
        self.woken.append(client_id)
        return Receipt(delivered=True)

    async def announce(self, signed: bytes) -> None:
        self.woken.append("everybody")


class World:
    """A fleet with one function, and its wakers."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder / "fedless.db")
        self.fleet.now_ms = now_ms()
        self.wire = Wire()
        self.blobs = Blobs(folder / "blobs")
        self.devices = Devices()
        self.rounds = 0
        row = {"run_id": RUN, "task_name": "t", "settings": "", "task": b"", "bundle_digest": bytes(32),
               "test_set_digest": b"", "state": "running", "rounds_wanted": 9, "started_at_ms": 1}  # fmt: skip
        self.fleet.database.run_now(lambda c: c.execute(insert(runs).values(row)))
        self.wakers = Wakers(
            self.devices, self.fleet.registrar.functions, lambda: "a.example:7444", self.fleet.database, self.blobs,
            prices.load(), now_ms,
        )  # fmt: skip

    async def add(self, url: str, **settings: Any) -> None:
        await self.blobs.put_bytes(self.wire.bundle)
        values = {"memory_mb": 1024, "timeout_s": 60, "url": url, "mode": "http", **settings}
        await self.fleet.registrar.add_function("fn-1", "knative", json.dumps(values))

    def ticket(self, **changes: Any) -> bytes:
        self.rounds += 1
        return wake_bytes(self.wire.ticket("fn-1", self.rounds, self.wire.task(), run_id=RUN, **changes))

    async def wake(self, ticket: bytes, within_ms: int = 30_000) -> Receipt:
        return await self.wakers.wake("fn-1", ticket, now_ms() + within_ms)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        events = self.fleet.database.run_now(lambda c: history.read(c, RUN, 0))
        return [(event.event, dict(event.fields)) for event in events]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    pytest.importorskip("httpx")
    made = World(tmp_path)
    yield made
    await made.wakers.close()
    made.fleet.database.close()


async def test_devices_are_woken_as_before(world: World) -> None:
    await world.fleet.registrar.enroll(request_for(await world.fleet.claim("dev-1")), "192.0.2.1")
    assert (await world.wakers.wake("dev-1", b"ticket", now_ms() + 1000)).delivered
    await world.wakers.announce(b"news")
    assert world.devices.woken == ["dev-1", "everybody"]


async def test_an_invocation_is_an_event_with_figures_and_price(world: World, platform: Start) -> None:
    there = await platform(reply(200, GOOD))
    await world.add(there.url)
    assert (await world.wake(world.ticket())).delivered
    for _ in range(1500):  # on a busy machine the wake-up returns before the platform has answered
        if world.events():
            break
        await asyncio.sleep(0.02)
    [(event, fields)] = world.events()
    assert (event, fields["outcome"], fields["attempts"]) == ("invocation_ended", "reported", 1)
    assert fields["run_ms"] == 120
    assert fields["prices"] == "2026-11-28"
    assert fields["measured"] is False


async def test_what_fails_at_once_is_told_with_its_reason(world: World, platform: Start) -> None:
    there = await platform(reply(404))
    await world.add(there.url)
    receipt = await world.wake(world.ticket())
    assert not receipt.delivered
    assert "knative, client fn-1" in receipt.detail
    [(event, fields)] = world.events()
    assert (event, fields["code"]) == ("invocation_failed", Code.FUNCTION_UNKNOWN.value)


async def test_a_silent_platform_holds_no_wake_up(world: World, platform: Start) -> None:
    """It has begun after a second; the next round's wake-up gives it up, with the reason kept."""
    there = await platform(HANG)
    await world.add(there.url)
    first = world.ticket()
    async with asyncio.timeout(5):
        assert (await world.wake(first)).delivered
        assert (await world.wake(first)).delivered  # repeated: it is under way
    assert len(there.requests) == 1
    assert (await world.wake(world.ticket())).delivered
    [(event, fields)] = world.events()
    assert (event, fields["code"]) == ("invocation_given_up", Code.PLATFORM_TIMEOUT.value)
    assert len(there.requests) == 2


async def test_bundle_that_does_not_fit_is_refused_before_invoking(world: World, platform: Start) -> None:
    there = await platform(reply(200, GOOD))
    await world.add(there.url, memory_mb=64)
    receipt = await world.wake(world.ticket())
    assert not receipt.delivered
    assert there.requests == []
    assert world.events()[0][1]["code"] == Code.FUNCTION_LIMIT.value


async def test_task_that_took_too_long_before_is_refused(world: World, platform: Start) -> None:
    slow = json.dumps({"fedless": 1, "outcome": "instance_timeout", "total_ms": 61_000.0}).encode()
    there = await platform(reply(200, slow))
    await world.add(there.url)
    assert (await world.wake(world.ticket())).delivered
    receipt = await world.wake(world.ticket())
    assert not receipt.delivered
    assert "took 61 s here before" in receipt.detail
    assert len(there.requests) == 1


async def test_revoked_function_is_not_invoked(world: World, platform: Start) -> None:
    there = await platform(reply(200, GOOD))
    await world.add(there.url)
    await world.fleet.registrar.revoke("fn-1", "")
    assert not (await world.wake(world.ticket())).delivered
    assert there.requests == []


async def test_missing_bundle_is_an_error_of_ours_and_no_crash(world: World, platform: Start) -> None:
    there = await platform(reply(200, GOOD))
    await world.add(there.url)
    other = hashlib.sha256(b"other").digest()
    assert not (await world.wake(world.ticket(bundle_digest=other))).delivered
    assert there.requests == []
    assert world.events()[0][1]["code"] == Code.STATE_CORRUPT.value


async def test_new_settings_are_used_at_once(world: World, platform: Start) -> None:
    gone, there = await platform(reply(404)), await platform(reply(200, GOOD))
    await world.add(gone.url)
    assert not (await world.wake(world.ticket())).delivered
    await world.add(there.url)
    assert (await world.wake(world.ticket())).delivered
    assert len(there.requests) == 1


def test_claims_are_in_no_event(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def run() -> str:
        await world.add("http://127.0.0.1:9/")
        await world.wake(world.ticket(), within_ms=1_200)
        await world.wakers.close()
        return json.dumps(world.events())

    pytest.importorskip("httpx")
    said = asyncio.run(run())
    assert Code.PLATFORM_UNREACHABLE.value in said
    assert "fedless1." not in said
    assert "fn-1" in said
    world.fleet.database.close()


async def test_unfinished_training_is_invoked_again_each_time_with_a_claim_of_its_own(
    world: World, platform: Start
) -> None:
    unfinished = GOOD.replace(b'"reported"', b'"unfinished"')
    there = await platform(reply(200, unfinished), reply(200, unfinished), reply(200, GOOD))
    await world.add(there.url)
    assert (await world.wake(world.ticket())).delivered
    async with asyncio.timeout(20):
        while len(world.events()) < 3:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)
    outcomes = [fields["outcome"] for event, fields in world.events() if event == "invocation_ended"]
    assert outcomes == ["unfinished", "unfinished", "reported"]
    claims = {json.loads(request.partition(b"\r\n\r\n")[2])["claim"] for request in there.requests}
    assert len(claims) == len(there.requests) == 3
