"""What a client hears of a round: its signed ticket, the offer when it checks in, and the newest model.

Wake-ups are sent in a bounded pool and repeated, byte for byte, while the broker cannot take them; no round
waits for them. Used by the coordinator and by the run's driver.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence

from aggregator.interfaces import Clock, Random, Receipt, Sleep, TicketSigner, Waker
from aggregator.members import Terms
from aggregator.store import history, runs
from aggregator.store.engine import Database
from aggregator.store.records import ModelRecord
from fedless.protocol import wire
from fedless.protocol.errors import FedlessError
from fedless.protocol.messages import NONCE_BYTES, Offer, Ticket

ANNOUNCE_LABEL = b"fedless-announce\0"  # as protobuf it has an impossible wire type: never taken for a ticket
WAKES_AT_ONCE = 32
RETRY_MS, RETRY_MS_MAX = 1_000, 30_000


class Tickets:
    """Makes and sends what is signed with the fleet's ticket key."""

    def __init__(
        self,
        database: Database,
        waker: Waker,
        sign: TicketSigner,
        *,
        fleet: str,
        clock: Clock,
        random: Random,
        sleep: Sleep,
        endpoints: Sequence[str] = (),
    ) -> None:
        """`endpoints` go into each ticket; empty: clients use those that they enrolled with."""
        self._database = database
        self._waker = waker
        self._sign = sign
        self.fleet = fleet
        self.endpoints = tuple(endpoints)
        self._clock = clock
        self._random = random
        self._sleep = sleep
        self._places = asyncio.Semaphore(WAKES_AT_ONCE)

    def nonce(self) -> bytes:
        """A fresh nonce, 16 bytes, for one client in one round."""
        return self._random(NONCE_BYTES)

    async def wake(self, terms: Terms, client_id: str, nonce: bytes) -> None:
        """Sends a client its ticket, again and again until it is delivered or the deadline has passed."""
        ticket = await self._ticket(terms, client_id, nonce)
        await self.send(ticket, lambda reason: self._note_failure(terms, client_id, reason))

    async def send(self, ticket: Ticket, failed: Callable[[str], Awaitable[None]]) -> None:
        """Signs a ticket and sends it until it is delivered or past its end; `failed` hears the first trouble."""
        signed = wire.signed_ticket_to_bytes(self._sign(wire.ticket_to_bytes(ticket)))
        pause, failures = RETRY_MS, 0
        while self._clock() < ticket.not_after_ms:
            receipt = await self._try(ticket.client_id, signed, ticket.not_after_ms)
            if receipt.delivered:
                return
            failures += 1
            if failures == 1:
                await failed(receipt.detail)
            await self._sleep(pause)
            pause = min(2 * pause, RETRY_MS_MAX)

    async def offer(self, terms: Terms) -> Offer:
        """What a client that checks in is told."""
        run = await self._database.run(lambda c: runs.load(c, terms.run_id))
        return Offer(run.task, terms.until_ms, terms.encoding, terms.report_bytes, self._clock())

    async def announce(self, run_id: str, model: ModelRecord) -> None:
        """Tells everybody of the run's newest model; a broker that is away costs nothing but the news."""
        news = {
            "fleet": self.fleet,
            "run_id": run_id,
            "model_version": model.version,
            "model_digest": model.digest.hex(),
            "round_id": model.round_id,
        }
        text = json.dumps(news, sort_keys=True, separators=(",", ":")).encode()
        signed = self._sign(ANNOUNCE_LABEL + text)
        try:
            await self._waker.announce(wire.signed_ticket_to_bytes(signed))
        except (FedlessError, OSError) as error:
            reason = str(error)
            await self._database.run(
                lambda c: history.note(c, run_id, "announcement_failed", self._clock(), reason=reason)
            )

    async def _try(self, client_id: str, signed: bytes, deadline_ms: int) -> Receipt:
        async with self._places:
            try:
                return await self._waker.wake(client_id, signed, deadline_ms)
            except (FedlessError, OSError) as error:
                return Receipt(delivered=False, detail=str(error))

    async def _note_failure(self, terms: Terms, client_id: str, detail: str) -> None:
        await self._database.run(
            lambda c: history.note(
                c,
                terms.run_id,
                "wake_failed",
                self._clock(),
                round_id=terms.round_id,
                client_id=client_id,
                reason=detail,
            )
        )

    async def _ticket(self, terms: Terms, client_id: str, nonce: bytes) -> Ticket:
        run, model = await self._database.run(
            lambda c: (runs.load(c, terms.run_id), runs.model(c, terms.run_id, terms.model_version))
        )
        return Ticket(
            fleet=self.fleet,
            client_id=client_id,
            task_digest=hashlib.sha256(run.task).digest(),
            run_id=terms.run_id,
            round_id=terms.round_id,
            kind=terms.kind,
            bundle_digest=run.bundle_digest,
            model_version=terms.model_version,
            model_digest=model.digest,
            endpoints=self.endpoints,
            not_after_ms=terms.until_ms,
            nonce=nonce,
            control_digest=model.control(terms.kind),
        )
