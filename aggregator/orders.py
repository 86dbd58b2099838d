"""Functions on devices from afar: push a bundle, ask devices to install, call or give up a version, or to renew.

An order travels as a round does: a signed ticket wakes the device, which asks for the order's bytes, does what the
ticket signed, and answers once. Everything is recorded before it is said; after a restart tickets are sent again, byte
for byte. Called by the Operator service and, for devices, by the Fleet service.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import structlog
from sqlalchemy import Connection

from aggregator.blobs import Blobs
from aggregator.interfaces import Clock, Random
from aggregator.store import fleet, functions
from aggregator.store import orders as store
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from edge_runtime import bundle
from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import (
    DIGEST_BYTES,
    NONCE_BYTES,
    Action,
    Kind,
    Order,
    OrderResult,
    Ticket,
)

CLIENTS_MAX = 10_000
VALID_MS, VALID_MS_MAX = 3_600_000, 7 * 24 * 3_600_000
WATCH_S = 25.0
NO_DIGEST = bytes(DIGEST_BYTES)
RUN_ID = "order"
"""In tickets, where rounds name their run."""
_log = structlog.get_logger("orders")


@dataclass(frozen=True)
class Wish:
    """What an operator asks for; see operator.proto. `every` means all devices."""

    request_id: bytes
    order: Order
    version: int = 0
    valid_ms: int = 0
    client_ids: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    every: bool = False


class Orders:
    """All orders of a fleet. `publishers` gives the trusted publishers, key id -> raw key, as they are now."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        tickets: Tickets,
        publishers: Callable[[], Mapping[bytes, bytes]],
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._tickets = tickets
        self._publishers = publishers
        self._clock = clock
        self._random = random
        self._waking: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def push(self, digest: bytes) -> store.BundleRow:
        """Makes a stored bundle the newest version of its function; again is fine.

        Raises `PeerError` UNKNOWN_BLOB, BUNDLE_*, MANIFEST_INVALID, CONFLICTING_REPEAT (that version has other bytes).
        """
        path = self._blobs.path(digest)
        manifest, _ = await asyncio.to_thread(
            lambda: bundle.verify(path.read_bytes(), digest.hex(), self._publishers())
        )
        now_ms = self._clock()

        def record(connection: Connection) -> store.BundleRow:
            known = store.versions(connection, manifest.name)
            same = next((row for row in known if row.version == manifest.version), None)
            if same is not None and same.digest != digest:
                detail = f"{manifest.name} version {manifest.version} was pushed with other content."
                raise PeerError(Code.CONFLICTING_REPEAT, detail, fix="Raise the version in function.toml.")
            if same is None and known and known[0].version > manifest.version:
                detail = f"{manifest.name} version {manifest.version}; version {known[0].version} was pushed."
                raise PeerError(Code.BUNDLE_OLDER, detail, fix="Raise the version in function.toml.")
            if same is None:
                store.add_bundle(connection, manifest.name, manifest.version, digest, now_ms)
            return next(row for row in store.versions(connection, manifest.name) if row.digest == digest)

        pushed = await self._database.run(record)
        _log.info("function_pushed", function=pushed.name, version=pushed.version)
        return pushed

    async def roll_back(self, name: str) -> store.BundleRow:
        """Gives the newest version of a function up; the one that serves then.

        Raises `PeerError` UNKNOWN_TASK, or WRONG_STATE if there is no other version.
        """

        def record(connection: Connection) -> store.BundleRow:
            usable = [row for row in _known(connection, name) if not row.given_up]
            if len(usable) < 2:  # noqa: PLR2004 - the one to give up, and one to serve
                detail = f"Expected two versions of {name} that are not given up, found {len(usable)}."
                raise PeerError(Code.WRONG_STATE, detail, fix="Push a new version instead.")
            store.give_up(connection, name, usable[0].version)
            return usable[1]

        serves = await self._database.run(record)
        _log.info("function_rolled_back", function=name, serves=serves.version)
        return serves

    async def give(self, wish: Wish) -> store.OrderRow:
        """Records an order and begins to wake its clients. The same request gives the same order.

        Raises `PeerError` UNKNOWN_TASK, UNKNOWN_CLIENT, WRONG_ROLE (a cloud function), TOO_FEW (nobody is meant),
        OUT_OF_RANGE, CONFLICTING_REPEAT.
        """
        order, now_ms = wire.order_from_bytes(wire.order_to_bytes(wish.order)), self._clock()
        body, asked = wire.order_to_bytes(order), _digest(wish)
        valid_ms = wish.valid_ms or VALID_MS
        if valid_ms > VALID_MS_MAX or len(wish.request_id) != NONCE_BYTES:
            detail = f"Expected a request id of {NONCE_BYTES} bytes and at most {VALID_MS_MAX} ms."
            raise PeerError(Code.OUT_OF_RANGE, detail)

        def record(connection: Connection) -> tuple[store.OrderRow, bool]:
            known = store.by_request(connection, wish.request_id)
            if known is not None:
                if known[1] != asked:
                    raise PeerError(Code.CONFLICTING_REPEAT, "This request id was used for another order.")
                return _found(connection, known[0]), False
            version, digest = _version(connection, order, wish.version)
            values = {
                "request_id": wish.request_id, "request_sha256": asked, "action": order.action.value,
                "function": order.function, "version": version, "bundle_digest": digest, "body": body,
                "given_at_ms": now_ms, "deadline_at_ms": now_ms + valid_ms,
            }  # fmt: skip
            clients = _selected(connection, wish)
            nonces = {client: self._random(NONCE_BYTES) for client in clients}
            return _found(connection, store.add(connection, values, nonces)), True

        given, new = await self._database.run(record)
        if new:
            _log.info("order_given", order=given.order_id, action=given.action, clients=given.clients)
            await self._wake_all([given.order_id])
        return given

    async def show(self, order_id: int, settled: int = 0, *, wait: bool = False) -> store.OrderRow:
        """An order; with `wait` once it has more answers than `settled`, or after 25 s. Raises UNKNOWN_ROUND."""
        end = asyncio.get_running_loop().time() + (WATCH_S if wait else 0.0)
        while True:
            changed = self._changed
            found = await self._database.run(lambda c: _found(c, order_id))
            left = end - asyncio.get_running_loop().time()
            if found.settled > settled or left <= 0:
                return found
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                return found

    async def answers(self, order_id: int, after: str, most: int) -> Sequence[store.AnswerRow]:
        """The answers of clients behind `after`, by id."""
        return await self._database.run(lambda c: store.parts(c, order_id, after, most))

    async def every(self) -> Sequence[store.OrderRow]:
        """All orders that are kept, the newest first."""
        return await self._database.run(store.every)

    async def functions(self) -> Sequence[store.BundleRow]:
        """All pushed versions, by name, the newest first."""
        return await self._database.run(store.versions)

    # -- devices

    async def ask(self, client_id: str, order_id: int, nonce: bytes) -> tuple[bytes, int]:
        """A device: the order that its ticket named, and its deadline.

        Raises `PeerError` UNKNOWN_ROUND, NOT_IN_COHORT or ROUND_CLOSED.
        """

        def work(connection: Connection) -> tuple[bytes, int]:
            found = _found(connection, order_id)
            _part(connection, order_id, client_id, nonce)
            return found.body, found.deadline_at_ms

        body, deadline_at_ms = await self._database.run(work)
        if deadline_at_ms <= self._clock():
            raise PeerError(Code.ROUND_CLOSED, "The order's deadline has passed.")
        return body, deadline_at_ms

    async def settle(self, client_id: str, result: OrderResult) -> None:
        """A device: what came of its order, once; also after the deadline.

        Raises `PeerError` UNKNOWN_ROUND, NOT_IN_COHORT, or CONFLICTING_REPEAT for another result than the first.
        """
        now_ms = self._clock()

        def record(connection: Connection) -> None:
            known = _part(connection, result.order_id, client_id, result.nonce).result
            if known.outcome and asdict(known) != asdict(result):
                raise PeerError(Code.CONFLICTING_REPEAT, "Another result of this order was taken.")
            if not known.outcome:
                store.settle(connection, client_id, result, now_ms)

        await self._database.run(record)
        self._changed.set()
        self._changed = asyncio.Event()
        _log.info("order_settled", order=result.order_id, client=client_id, outcome=result.outcome)

    # -- waking

    async def resume(self) -> None:
        """At the service's start: whoever has not answered is woken again."""
        waiting = await self._database.run(lambda c: store.unsettled(c, self._clock()))
        await self._wake_all(sorted({order_id for order_id, _ in waiting}))

    async def close(self) -> None:
        """Stops waking; it goes on after the next start."""
        for task in self._waking:
            task.cancel()
        await asyncio.gather(*self._waking, return_exceptions=True)

    async def _wake_all(self, order_ids: Sequence[int]) -> None:
        def read(connection: Connection) -> list[tuple[store.OrderRow, str, bytes]]:
            unsettled = [pair for pair in store.unsettled(connection, self._clock()) if pair[0] in order_ids]
            parts = [
                (_found(connection, n), client, store.part(connection, n, client)) for n, client in unsettled
            ]
            return [(order, client, part.result.nonce) for order, client, part in parts if part is not None]

        for order, client_id, nonce in await self._database.run(read):
            task = asyncio.create_task(self._wake(order, client_id, nonce))
            self._waking.add(task)
            task.add_done_callback(self._waking.discard)

    async def _wake(self, order: store.OrderRow, client_id: str, nonce: bytes) -> None:
        async def note(reason: str) -> None:
            _log.warning("order_not_sent", order=order.order_id, client=client_id, reason=reason)

        ticket = Ticket(
            fleet=self._tickets.fleet,
            client_id=client_id,
            task_digest=hashlib.sha256(order.body).digest(),
            run_id=RUN_ID,
            round_id=order.order_id,
            kind=Kind.INVOKE,
            bundle_digest=order.bundle_digest,
            model_version=0,
            model_digest=NO_DIGEST,
            endpoints=self._tickets.endpoints,
            not_after_ms=order.deadline_at_ms,
            nonce=nonce,
        )
        await self._tickets.send(ticket, note)


def _digest(wish: Wish) -> bytes:
    """What makes two wishes the same."""
    values = asdict(wish) | {"request_id": wish.request_id.hex()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()


def _known(connection: Connection, name: str) -> list[store.BundleRow]:
    known = store.versions(connection, name) if name else []
    if not known:
        detail = f"No function {name[:64]!r} was pushed."
        raise PeerError(
            Code.UNKNOWN_TASK,
            detail,
            fix="See `fedless function list`; push it with `fedless function push`.",
        )
    return known


def _version(connection: Connection, order: Order, wanted: int) -> tuple[int, bytes]:
    """Which version of the function an order is about, and its bundle."""
    if order.action not in (Action.INVOKE, Action.INSTALL):
        return 0, NO_DIGEST
    known = _known(connection, order.function)
    usable = [row for row in known if (row.version == wanted if wanted else not row.given_up)]
    if not usable:
        which = f"version {wanted}" if wanted else "version that is not given up"
        raise PeerError(
            Code.UNKNOWN_TASK, f"{order.function} has no {which}.", fix="See `fedless function list`."
        )
    return usable[0].version, usable[0].digest


def _selected(connection: Connection, wish: Wish) -> list[str]:
    """The devices that are meant, by id."""
    devices = {
        row.client_id: row
        for row in fleet.all_clients(connection)
        if row.state == fleet.ENROLLED and functions.find(connection, row.client_id) is None
    }
    named = [fleet.resolve(connection, text) or text for text in wish.client_ids]
    for client_id in named:
        if client_id not in devices:
            if fleet.state_of(connection, client_id) == fleet.ENROLLED:
                fix = "Its platform invokes it with each round; orders are for devices."
                raise PeerError(Code.WRONG_ROLE, f"{client_id} is a cloud function.", fix=fix)
            detail = f"Found no enrolled device {client_id[:64]!r}."
            raise PeerError(Code.UNKNOWN_CLIENT, detail, fix="See `fedless fleet list`.")
    wanted = wish.labels.items()
    labelled = {name for name, row in devices.items() if wanted and wanted <= row.labels.items()}
    meant = set(devices) if wish.every else labelled | set(named)
    if not 1 <= len(meant) <= CLIENTS_MAX:
        detail = f"Expected 1 to {CLIENTS_MAX} devices, found {len(meant)}."
        raise PeerError(Code.TOO_FEW, detail, fix="Name devices or labels; see `fedless fleet list`.")
    return sorted(meant)


def _found(connection: Connection, order_id: int) -> store.OrderRow:
    found = store.load(connection, order_id)
    if found is None:
        raise PeerError(Code.UNKNOWN_ROUND, f"Found no order {order_id}.")
    return found


def _part(connection: Connection, order_id: int, client_id: str, nonce: bytes) -> store.AnswerRow:
    _found(connection, order_id)
    part = store.part(connection, order_id, client_id)
    if part is None or part.result.nonce != nonce:
        raise PeerError(Code.NOT_IN_COHORT, "The order is not for this client.")
    return part
