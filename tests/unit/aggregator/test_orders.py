"""Orders at the aggregator: given once, answered once; who has not answered is woken again after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.blobs import Blobs
from aggregator.interfaces import Receipt
from aggregator.orders import Orders, Wish
from aggregator.store import orders as store
from aggregator.tickets import Tickets
from fedless.protocol import bundle_format, signed, wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Action, Kind, Order, OrderResult, Ticket
from tests.unit.aggregator.test_enrollment import Fleet, request_for

KEY, TICKET_KEY = bytes(range(32)), bytes(range(1, 33))
CALL = Order(Action.INVOKE, "adder", "[1]")


class World:
    """Orders over a real store, with three devices; wake-ups are collected."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder / "fedless.db")
        self.blobs = Blobs(folder / "blobs")
        self.woken: list[tuple[str, bytes]] = []
        self.reachable = True
        self.orders = self.open()

    def open(self) -> Orders:
        tickets = Tickets(
            self.fleet.database, self, lambda t: signed.sign_ticket(t, TICKET_KEY), fleet="home",
            clock=lambda: self.fleet.now_ms, random=os.urandom, sleep=self.sleep,
        )  # fmt: skip
        key = signed.signing_key(KEY)
        return Orders(
            self.fleet.database, self.blobs, tickets, lambda: {key.key_id: key.public_key},
            lambda: self.fleet.now_ms, os.urandom,
        )  # fmt: skip

    async def wake(self, client_id: str, signed_ticket: bytes, deadline_ms: int) -> Receipt:
        if self.reachable:
            self.woken.append((client_id, signed_ticket))
        return Receipt(self.reachable, "" if self.reachable else "away")

    async def announce(self, signed: bytes) -> None:
        return

    async def sleep(self, duration_ms: int) -> None:
        await asyncio.sleep(0.001)

    async def push(self, version: int, key: bytes = KEY, code: str = "") -> store.BundleRow:
        manifest = f'format = 1\n[function]\nname = "adder"\nversion = {version}\nentry = "main:handle"\n'
        files = {"function.toml": manifest.encode(), "main.py": f"def handle(e, c): ...{code}".encode()}
        digest, _ = await self.blobs.put_bytes(bundle_format.pack(files, key))
        return await self.orders.push(digest)

    async def settled(self) -> None:
        await asyncio.gather(*self.orders._waking)

    def tickets(self) -> dict[str, Ticket]:
        """Newest ticket of each device, verified."""
        keys = [signed.signing_key(TICKET_KEY)]
        return {
            client: wire.ticket_from_bytes(signed.verify_ticket(wire.signed_ticket_from_bytes(data), keys))
            for client, data in self.woken
        }


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    registrar = world.fleet.registrar
    for name, labels in (
        ("pi-1", {"site": "a"}),
        ("pi-2", {"site": "a", "gpu": "no"}),
        ("pi-3", {"site": "b"}),
    ):
        (claim,) = await registrar.issue_claims(1, client_ids=[name], labels=labels)
        await registrar.enroll(request_for(claim.text), "192.0.2.1")
    yield world
    await world.orders.close()
    world.fleet.database.close()


async def code_of(call: Awaitable[object]) -> Code:
    with pytest.raises(PeerError) as caught:
        await call
    return caught.value.code


def wish(order: Order = CALL, request: bytes = b"r" * 16, **changes: object) -> Wish:
    return replace(Wish(request, order, client_ids=["pi-1"]), **changes)  # type: ignore[arg-type]


async def test_versions_only_rise_and_a_repeat_is_harmless(world: World) -> None:
    first = await world.push(2)
    assert await world.push(2) == first
    assert await code_of(world.push(2, code="1")) is Code.CONFLICTING_REPEAT
    assert await code_of(world.push(1)) is Code.BUNDLE_OLDER
    assert await code_of(world.push(3, key=bytes(32))) is Code.BUNDLE_PUBLISHER
    assert await code_of(world.orders.push(bytes(32))) is Code.UNKNOWN_BLOB
    assert await code_of(world.orders.roll_back("adder")) is Code.WRONG_STATE
    await world.push(3)
    assert (await world.orders.roll_back("adder")).version == 2
    given = await world.orders.give(wish())
    assert given.version == 2
    assert (await world.orders.give(wish(request=b"s" * 16, version=3))).version == 3


async def test_the_ticket_signs_the_order_and_only_its_client_gets_it(world: World) -> None:
    pushed = await world.push(1)
    given = await world.orders.give(wish(client_ids=[], labels={"site": "a"}))
    assert (given.clients, given.settled) == (2, 0)
    await world.settled()
    tickets = world.tickets()
    assert set(tickets) == {"pi-1", "pi-2"}
    ticket = tickets["pi-1"]
    body, until = await world.orders.ask("pi-1", ticket.round_id, ticket.nonce)
    assert hashlib.sha256(body).digest() == ticket.task_digest
    assert wire.order_from_bytes(body) == CALL
    assert (ticket.kind, ticket.bundle_digest, until) == (Kind.INVOKE, pushed.digest, ticket.not_after_ms)
    for client, nonce in (("pi-3", ticket.nonce), ("pi-2", ticket.nonce), ("pi-1", bytes(16))):
        assert await code_of(world.orders.ask(client, ticket.round_id, nonce)) is Code.NOT_IN_COHORT
    assert await code_of(world.orders.ask("pi-1", 7, ticket.nonce)) is Code.UNKNOWN_ROUND
    world.fleet.now_ms = until
    assert await code_of(world.orders.ask("pi-1", ticket.round_id, ticket.nonce)) is Code.ROUND_CLOSED


async def test_the_first_result_counts_also_after_the_deadline(world: World) -> None:
    await world.push(1)
    given = await world.orders.give(wish())
    await world.settled()
    result = OrderResult(given.order_id, world.tickets()["pi-1"].nonce, "done", answer="3", version=1)
    waiting = asyncio.create_task(world.orders.show(given.order_id, 0, wait=True))
    await asyncio.sleep(0)
    world.fleet.now_ms = given.deadline_at_ms + 1
    await world.orders.settle("pi-1", result)
    await world.orders.settle("pi-1", result)
    assert (await waiting).settled == 1
    assert await code_of(world.orders.settle("pi-1", replace(result, answer="4"))) is Code.CONFLICTING_REPEAT
    assert await code_of(world.orders.settle("pi-2", result)) is Code.NOT_IN_COHORT
    (answer,) = await world.orders.answers(given.order_id, "", 10)
    assert answer.result == result


async def test_a_repeated_request_is_one_order(world: World) -> None:
    await world.push(1)
    first = await world.orders.give(wish())
    assert (await world.orders.give(wish())).order_id == first.order_id
    assert await code_of(world.orders.give(wish(valid_ms=5))) is Code.CONFLICTING_REPEAT
    assert len(await world.orders.every()) == 1


async def test_who_cannot_be_meant_is_told(world: World) -> None:
    await world.push(1)
    assert await code_of(world.orders.give(wish(client_ids=["nobody"]))) is Code.UNKNOWN_CLIENT
    assert await code_of(world.orders.give(wish(client_ids=[]))) is Code.TOO_FEW
    assert await code_of(world.orders.give(wish(client_ids=[], labels={"site": "c"}))) is Code.TOO_FEW
    assert await code_of(world.orders.give(wish(Order(Action.INVOKE, "absent")))) is Code.UNKNOWN_TASK
    assert await code_of(world.orders.give(wish(version=9))) is Code.UNKNOWN_TASK
    assert await code_of(world.orders.give(wish(valid_ms=10**12))) is Code.OUT_OF_RANGE
    await world.fleet.registrar.revoke("pi-1", "lost")
    assert await code_of(world.orders.give(wish())) is Code.UNKNOWN_CLIENT
    assert (await world.orders.give(wish(client_ids=[], every=True))).clients == 2


async def test_after_a_restart_only_those_who_did_not_answer_are_woken_with_the_same_bytes(
    world: World,
) -> None:
    await world.push(1)
    given = await world.orders.give(wish(client_ids=[], every=True))
    await world.settled()
    before = dict(world.woken)
    nonce = world.tickets()["pi-2"].nonce
    await world.orders.settle("pi-2", OrderResult(given.order_id, nonce, Code.POLICY.value, "no"))
    world.woken.clear()
    await world.orders.close()
    world.orders = world.open()
    await world.orders.resume()
    await world.settled()
    assert dict(world.woken) == {name: before[name] for name in ("pi-1", "pi-3")}


async def test_a_broker_that_is_away_gets_the_ticket_when_it_is_back(world: World) -> None:
    await world.push(1)
    world.reachable = False
    await world.orders.give(wish())
    await asyncio.sleep(0.02)
    assert world.woken == []
    world.reachable = True
    await world.settled()
    assert [client for client, _ in world.woken] == ["pi-1"]


async def test_old_orders_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT", 2)
    renew = Order(Action.RENEW)
    ids = [(await world.orders.give(wish(renew, bytes([n]) * 16))).order_id for n in range(4)]
    assert [order.order_id for order in await world.orders.every()] == ids[:1:-1]
