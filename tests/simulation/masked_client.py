"""A client of masked rounds on the pure client code, which does by itself what its tickets ask.

It can be told to leave before a step. Its state goes through its serialised form after each step.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedless.protocol.crypto import start_digest
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn, Encoding, Kind, NotNow, Offer, ReportHeader, Ticket
from fedless.protocol.secagg import client, codec, ring, setup
from fedless.protocol.secagg.messages import (
    Inbox,
    Roster,
    RoundOpen,
    RoundResult,
    UnmaskRequest,
    UnmaskResponse,
)
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.state import ClientState, leave, mark
from tests.secagg_fleet import certificate_of, client_sign, stored, verify_aggregator
from tests.simulation.world import KNOWN, masked_update, number_of, pieces

if TYPE_CHECKING:
    from tests.simulation.masked_world import MaskedWorld

LEAVING = {Code.NOT_IN_COHORT, Code.TOO_FEW, Code.BAD_BOX, Code.CONFLICTING_REPEAT, Code.STATE_OLDER}
STEPS = ("check_in", "keys", "roster", "shares", "inbox", "admit", "report", "unmask", "answer")


class Left(Exception):  # noqa: N818 - it is no error
    """The client went away."""


@dataclass
class MaskedClient:
    """One client: what it keeps, and how it serves."""

    world: MaskedWorld
    id: str
    examples: int = 10
    leaves_before: str = ""
    reports: int | None = None  # another client's unit vector: a lie
    state: ClientState = field(init=False)
    outbox: dict[int, tuple[ReportHeader, bytes]] = field(default_factory=dict)
    results: dict[int, RoundResult] = field(default_factory=dict)
    refusals: list[Code] = field(default_factory=list)
    handled: set[bytes] = field(default_factory=set)
    falsify: Callable[[bytes], bytes] = bytes
    before_round: dict[int, Callable[[], None]] = field(default_factory=dict)
    images: list[ClientState] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.state = ClientState(self.id)

    @property
    def number(self) -> int:
        return number_of(self.id)

    def launch(self) -> None:
        if not self.leaves_before or self.task is None or self.task.done():
            self.go()
            self.task = asyncio.create_task(self.serve())

    def go(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def come_back(self) -> None:
        self.leaves_before = ""
        self.launch()

    def keep(self, state: ClientState) -> None:
        """Through the journal."""
        self.state = stored(state)

    # -- serving

    async def serve(self) -> None:
        with suppress(Left):
            while True:
                ticket = await self.next_ticket()
                try:
                    await self.take(ticket)
                except PeerError as error:
                    self.refusals.append(error.code)
                    if error.code in LEAVING and self.state.epochs:
                        self.keep(leave(self.state, self.state.epochs[-1].epoch))
                self.handled.add(ticket.nonce)

    async def next_ticket(self) -> Ticket:
        known = 0
        while True:
            if len(self.world.waker.sent.get(self.id, [])) > known:
                known = len(self.world.waker.sent[self.id])
                for ticket in self.world.waker.tickets(self.id):
                    if ticket.nonce not in self.handled:
                        return ticket
            await asyncio.sleep(0.002)

    async def take(self, ticket: Ticket) -> None:
        if ticket.kind is Kind.EPOCH:
            await self.join(ticket)
        elif ticket.kind is Kind.UNMASK:
            await self.unmask(ticket.round_id)
        else:
            await self.report(ticket)

    def reach(self, step: str) -> None:
        assert not self.leaves_before or self.leaves_before in STEPS
        if step == self.leaves_before:
            raise Left

    async def held(self, call: Callable[[], Awaitable[bytes]]) -> bytes:
        while not (answer := await call()):  # noqa: ASYNC110 - the aggregator tells nobody
            await asyncio.sleep(0.002)
        return answer

    # -- M0 to M3

    async def join(self, ticket: Ticket) -> None:
        epochs, epoch = self.world.epochs, ticket.round_id
        self.reach("check_in")
        assert await epochs.is_epoch(epoch)
        offer = await epochs.check_in(self.id, CheckIn(epoch, ticket.nonce, self.mark()))
        if isinstance(offer, NotNow):
            return
        keys = self.begin(epoch, offer.epoch_slots)
        self.reach("keys")
        await epochs.post_keys(self.id, epoch, keys)
        self.reach("roster")
        if not self.state.epoch(epoch).members:
            shares = self.share(await self.held(lambda: epochs.roster(self.id, epoch)))
            self.reach("shares")
            await epochs.post_shares(self.id, epoch, shares)
        self.reach("inbox")
        self.collect(await self.held(lambda: epochs.inbox(self.id, epoch)))

    def mark(self) -> bytes:
        return codec.dumps(mark(self.state))

    def begin(self, epoch: int, slots: int, flavour: str = "") -> bytes:
        """M0."""
        state, keys = setup.begin_epoch(
            self.state,
            epoch,
            slots,
            chain_key=hashlib.sha256(f"{self.id} {epoch}{flavour}".encode()).digest(),
            certificate=certificate_of(self.id, self.number + 1),
            sign=client_sign(self.number + 1),
            rates=(1000, 500),
        )
        self.keep(state)
        return codec.dumps(keys)

    def share(self, message: bytes) -> bytes:
        """M1 -> M2."""
        state, shares = setup.accept_roster(
            self.state,
            codec.loads(Roster, message),
            Policy(),
            verify_member=self.world.verify_member,
            verify_aggregator=verify_aggregator,
        )
        self.keep(state)
        return codec.dumps(shares)

    def collect(self, message: bytes) -> None:
        """M3."""
        inbox = codec.loads(Inbox, message)
        state, failed = setup.accept_inbox(self.state, inbox, Policy(), verify_aggregator=verify_aggregator)
        assert failed == ()
        self.keep(state)

    # -- M4 to M8

    async def report(self, ticket: Ticket) -> None:
        round_id, coordinator = ticket.round_id, self.world.coordinator
        if round_id not in self.outbox:
            self.reach("admit")
            self.images.append(self.state)
            self.before_round.get(len(self.images), lambda: None)()
            offer = await coordinator.check_in(self.id, CheckIn(round_id, ticket.nonce, self.mark()))
            if isinstance(offer, NotNow):
                return
            self.outbox[round_id] = self.mask(ticket, offer)
        self.reach("report")
        await self.send(round_id)
        await self.unmask(round_id)

    def mask(self, ticket: Ticket, offer: Offer) -> tuple[ReportHeader, bytes]:
        """M4 -> M5, as it goes into the outbox."""
        opened = codec.loads(RoundOpen, offer.round_open)
        paths = [self.world.blobs.path(d) for d in (ticket.model_digest, ticket.control_digest) if d]
        digests = [hashlib.sha256(Path(path).read_bytes()).digest() for path in paths]
        state = client.accept_round(
            self.state,
            opened,
            model_digest=start_digest(digests[0], b"".join(digests[1:])),
            task_digest=hashlib.sha256(offer.task).digest(),
            verify_aggregator=verify_aggregator,
        )
        self.keep(state)
        encoding = opened.encoding
        shown = self.number if self.reports is None else self.reports
        update = masked_update(shown, encoding.dimension, self.world.parameters)
        known = KNOWN | {"loss": 2.0 + self.number}
        extras = {extra.name: known[extra.name] for extra in encoding.extras}
        seed = hashlib.sha256(f"{self.id} {opened.round_id} rounding".encode()).digest()
        words = ring.encode(encoding, update, self.examples, extras, seed)
        state, head = client.mask_report(self.state, opened, words, sign=client_sign(self.number + 1))
        self.keep(state)
        header = ReportHeader(
            opened.round_id,
            Encoding.RING16 if opened.encoding.bits == 16 else Encoding.RING32,
            words.nbytes,
            head.sha256,
            masked=codec.dumps(head),
        )
        return header, words.tobytes()

    async def send(self, round_id: int) -> None:
        header, data = self.outbox[round_id]
        coordinator = self.world.coordinator
        offset, complete = await coordinator.begin_report(self.id, header)
        if not complete:
            await coordinator.put_report(self.id, round_id, offset, pieces(data[offset:]))

    async def unmask(self, round_id: int) -> None:
        rounds = self.world.rounds
        self.reach("unmask")
        message = await self.held(lambda: rounds.unmask_request(self.id, round_id))
        response = self.answer(message)
        self.reach("answer")
        await rounds.post_response(self.id, round_id, response)
        ended = codec.loads(RoundResult, await self.held(lambda: rounds.result(self.id, round_id)))
        self.results[round_id] = ended
        self.keep(client.accept_result(self.state, ended, verify_aggregator=verify_aggregator))

    def answer(self, message: bytes) -> bytes:
        """M6 -> M7."""
        request = codec.loads(UnmaskRequest, message)
        state, response = client.answer_unmask(self.state, request, verify_aggregator=verify_aggregator)
        self.keep(state)
        shares = self.falsify(response.shares)
        return codec.dumps(UnmaskResponse(response.round_id, response.epoch, response.index, shares))
