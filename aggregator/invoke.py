"""Waking by the client's record: devices over MQTT, cloud functions through their platform's invoker.

The `Waker` that the core gets. An invocation may take as long as the training, so a wake-up returns as soon as it is
known to have begun, or to have failed at once; what became of it is an event of the run, with its figures and price.
A function that never reports costs the round what a silent device costs: its place, until the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from aggregator.blobs import Blobs
from aggregator.interfaces import Clock, Receipt, Waker
from aggregator.store import history
from aggregator.store.engine import Database
from aggregator.store.functions import FunctionRow
from cloud_adapters.base import Invoker, Needs
from cloud_adapters.base import Receipt as Invoked
from cloud_adapters.prices import Prices
from cloud_adapters.registry import invoker
from fedless.protocol import bundle_format, wire
from fedless.protocol.errors import Code, FedlessError, LocalError
from fedless.protocol.manifest import MANIFEST_FILE, parse_bytes
from fedless.protocol.messages import Ticket

AT_ONCE = 256
FOLLOW_UPS_MAX = 1000
"""So often a function is invoked again in one round to go on with its training."""
PATIENCE_S = 1.0
"""An invocation that has not failed by then has begun."""
_log = structlog.get_logger("invoke")


class FunctionClients(Protocol):
    """What is asked of `functions.Functions`."""

    async def find(self, client_id: str) -> FunctionRow | None:
        """The registered function; None for a device."""
        ...

    async def claim(self, client_id: str, address: str, expires_at_ms: int) -> str:
        """A one-use claim."""
        ...


@dataclass
class Wakers:
    """`address` tells the enrollment port, `host:port`, as functions reach it."""

    devices: Waker
    functions: FunctionClients
    address: Callable[[], str]
    database: Database
    blobs: Blobs
    prices: Prices
    clock: Clock
    _invokers: dict[str, tuple[FunctionRow, Invoker]] = field(default_factory=dict)
    _running: dict[str, tuple[bytes, asyncio.Task[None]]] = field(default_factory=dict)
    _memory_mb: dict[bytes, int] = field(default_factory=dict)
    _took_ms: dict[tuple[str, bytes], int] = field(default_factory=dict)
    _unfinished: set[str] = field(default_factory=set)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def wake(self, client_id: str, signed_ticket: bytes, deadline_ms: int) -> Receipt:
        """See `Waker`."""
        row = await self.functions.find(client_id)
        if row is None:
            return await self.devices.wake(client_id, signed_ticket, deadline_ms)
        running, earlier = self._running.get(client_id, (b"", None))
        if earlier is not None and not earlier.done():
            if running == signed_ticket:
                self._unfinished.add(client_id)  # perhaps it says so over gRPC before its platform does
                return Receipt(delivered=True)
            earlier.cancel()  # its round is over: whatever it does still, it does for nobody
            await asyncio.gather(earlier, return_exceptions=True)
        task = asyncio.ensure_future(self._invoke(row, signed_ticket, deadline_ms))
        self._running[client_id] = (signed_ticket, task)
        task.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # it is noted where it is raised
        await asyncio.wait({task}, timeout=PATIENCE_S)
        error = task.exception() if task.done() and not task.cancelled() else None
        if error is not None:
            detail = str(error) if isinstance(error, FedlessError) else type(error).__name__
            return Receipt(delivered=False, detail=detail)
        return Receipt(delivered=True)

    async def announce(self, signed: bytes) -> None:
        """Devices hear of new models; functions are told when they are invoked."""
        await self.devices.announce(signed)

    async def close(self) -> None:
        """Give up what runs: functions go on, and report."""
        running = [task for _, task in self._running.values() if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for _, one in self._invokers.values():
            await one.close()

    async def _invoke(self, row: FunctionRow, signed: bytes, deadline_ms: int) -> None:
        """One invocation, and further ones for as long as the training stops in the middle for want of time."""
        for _ in range(FOLLOW_UPS_MAX):
            self._unfinished.discard(row.client_id)
            try:
                unfinished = await self._invoke_once(row, signed, deadline_ms)
            except FedlessError:
                if row.client_id not in self._unfinished:
                    raise
                continue  # the platform's answer was lost; the function's own word was not
            if not unfinished:
                return

    async def _invoke_once(self, row: FunctionRow, signed: bytes, deadline_ms: int) -> bool:
        """Whether the training is to be gone on with."""
        ticket = wire.ticket_from_bytes(wire.signed_ticket_from_bytes(signed).ticket)
        begun_ms = self.clock()
        try:
            async with self._places:
                receipt = await self._invoker(row).invoke(
                    signed,
                    self._claims(row.client_id, deadline_ms),
                    deadline_ms,
                    await self._needs(ticket),
                    self.clock,
                )
        except FedlessError as error:
            await self._note(ticket, "invocation_failed", code=error.code.value, reason=str(error))
            raise
        except asyncio.CancelledError:
            await self._give_up(ticket)
            raise
        except Exception as error:
            _log.exception("invocation_broke", client=row.client_id, platform=row.platform)
            await self._note(
                ticket, "invocation_failed", code=Code.INTERNAL.value, reason=type(error).__name__
            )
            raise
        await self._ended(row.platform, ticket, receipt, begun_ms)
        return receipt.answer is not None and receipt.answer.outcome == Code.UNFINISHED.value

    async def _give_up(self, ticket: Ticket) -> None:
        known = self._invokers.get(ticket.client_id)
        trouble = known[1].trouble if known else None
        code, reason = (
            (trouble.code, str(trouble)) if trouble else (Code.PLATFORM_TIMEOUT, "It was still running.")
        )
        await self._note(ticket, "invocation_given_up", code=code.value, reason=reason)

    def _claims(self, client_id: str, deadline_ms: int) -> Callable[[], Awaitable[str]]:
        return lambda: self.functions.claim(client_id, self.address(), deadline_ms)

    def _invoker(self, row: FunctionRow) -> Invoker:
        known = self._invokers.get(row.client_id)
        if known is None or known[0] != row:
            self._invokers[row.client_id] = known = (row, invoker(row.platform, row.client_id, row.settings))
        return known[1]

    async def _needs(self, ticket: Ticket) -> Needs:
        digest = ticket.bundle_digest
        if digest not in self._memory_mb:
            self._memory_mb[digest] = await asyncio.to_thread(self._read_memory_mb, digest)
        return Needs(self._memory_mb[digest], self._took_ms.get((ticket.client_id, ticket.task_digest), 0))

    def _read_memory_mb(self, digest: bytes) -> int:
        try:
            header = bundle_format.read_header(self.blobs.path(digest).read_bytes())
            return parse_bytes(bundle_format.unpack(header.archive)[MANIFEST_FILE]).memory_mb
        except (FedlessError, OSError, KeyError) as error:
            raise LocalError(Code.STATE_CORRUPT, "The round's bundle cannot be read.") from error

    async def _ended(self, platform: str, ticket: Ticket, receipt: Invoked, begun_ms: int) -> None:
        figures, answer = receipt.figures, receipt.answer
        fields = {
            "platform": platform,
            "attempts": receipt.attempts,
            "took_ms": self.clock() - begun_ms,
            "figures": figures.source,
        }
        if answer is None:
            await self._note(ticket, "invocation_accepted", **fields)
            return
        if figures.run_ms:
            self._took_ms[ticket.client_id, ticket.task_digest] = round(figures.run_ms)
        cost = self.prices.cost(platform, figures, receipt.attempts, answer.bytes_up)
        if cost is not None:
            fields |= {
                "usd": cost.usd,
                "gb_s": cost.gb_s,
                "measured": cost.measured,
                "prices": str(self.prices.at),
            }
        await self._note(
            ticket, "invocation_ended", outcome=answer.outcome, reason=answer.detail, start=answer.start,
            run_ms=figures.run_ms, billed_ms=figures.billed_ms, init_ms=figures.init_ms, wait_ms=figures.wait_ms,
            memory_mb=figures.memory_mb, peak_mb=figures.peak_mb, **fields,
        )  # fmt: skip

    async def _note(self, ticket: Ticket, event: str, **fields: object) -> None:
        _log.info(event, client=ticket.client_id, round=ticket.round_id, **fields)
        now_ms = self.clock()
        await self.database.run(
            lambda c: history.note(
                c,
                ticket.run_id,
                event,
                now_ms,
                round_id=ticket.round_id,
                client_id=ticket.client_id,
                **fields,
            )
        )
