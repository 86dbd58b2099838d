"""The whole aggregator in pairwise mode, and clients on the pure client code: real SQLite and files, fake time.

A client does by itself what its tickets ask, unless it is told to leave before a step; its state goes through its
serialised form after each step. `kill_after` is a kill -9 right behind the transaction that records an event.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection, func, select

from aggregator.epochs import KeyEpochs, Signing
from aggregator.masked import MaskedMode, Pairwise
from aggregator.pairwise import PairwiseRounds
from aggregator.store import masks
from aggregator.store.engine import Database
from aggregator.store.masks import KeyEpoch
from aggregator.store.schema import events
from aggregator.tickets import Tickets
from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn, Encoding, Kind, Mode, NotNow, Offer, ReportHeader, Ticket
from fedless.protocol.secagg import client, codec, ring, setup
from fedless.protocol.secagg.messages import (
    Inbox,
    Member,
    Roster,
    RoundOpen,
    RoundResult,
    UnmaskRequest,
    UnmaskResponse,
)
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.server import ServerRound
from fedless.protocol.secagg.state import ClientState, leave, mark
from tests.secagg_fleet import aggregator_sign, certificate_of, client_sign, stored, verify_aggregator
from tests.simulation.world import World, number_of, pieces, task, unit

T = TypeVar("T")
LEAVING = {Code.NOT_IN_COHORT, Code.TOO_FEW, Code.BAD_BOX, Code.CONFLICTING_REPEAT, Code.STATE_OLDER}
SETUP_MS, UNMASK_MS, DEADLINE_MS = 60_000, 50_000, 100_000
STEPS = ("check_in", "keys", "roster", "shares", "inbox", "admit", "report", "unmask", "answer")


def masked_task(
    rounds: int = 1,
    size: int = 8,
    minimum: int = 0,
    devices: int = 0,
    abandon_limit: int = 2,
    secagg: str = "",
    wait_s: int = 60,
) -> str:
    """A task in pairwise mode."""
    plain = task(rounds, size, minimum, mode="pairwise", devices=devices, wait_s=wait_s)
    plain = plain.replace("abandon_limit = 2", f"abandon_limit = {abandon_limit}")
    return f"{plain}\n[secagg]\nsetup_s = {SETUP_MS // 1000}\nunmask_s = {UNMASK_MS // 1000}\n{secagg}"


class Killable(Database):
    """A database whose process dies right after an event was recorded for the nth time: nobody hears of it."""

    kill_after: tuple[str, int] | None = None
    killed: asyncio.Event

    async def run(self, work: Callable[[Connection], T]) -> T:
        await self._alive()
        result = await super().run(work)
        if self.kill_after is not None and not self.killed.is_set():
            event, times = self.kill_after
            if await super().run(lambda c: recorded(c, event)) >= times:
                self.killed.set()
        await self._alive()
        return result

    async def _alive(self) -> None:
        if self.kill_after is not None and self.killed.is_set():
            await asyncio.Event().wait()


def recorded(connection: Connection, event: str) -> int:
    """How often an event is in the logs of all runs."""
    query = select(func.count()).select_from(events).where(events.c.event == event)
    return int(connection.scalar(query) or 0)


class Left(Exception):  # noqa: N818 - it is no error
    """The client went away."""


@dataclass
class MaskedWorld(World):
    """A world in pairwise mode; its clients serve by themselves."""

    count: int = 8
    DATABASE = Killable
    PATIENCE_S = 60.0

    def __post_init__(self) -> None:
        self.revoked: set[str] = set()
        self.kill: tuple[str, int] | None = None
        super().__post_init__()
        self.clients = [MaskedClient(self, record.client_id) for record in self.fleet.records]

    def modes(self, tickets: Tickets, outside: dict[str, Any]) -> dict[Mode, MaskedMode]:
        assert isinstance(self.database, Killable)
        self.database.killed = asyncio.Event()
        self.database.kill_after = self.kill
        signing = Signing(aggregator_sign, self.verify_member)
        self.epochs = KeyEpochs(self.database, tickets, signing, random=self._random.bytes, **outside)
        self.rounds = PairwiseRounds(self.database, self.epochs, tickets, signing, **outside)
        return {Mode.PAIRWISE: Pairwise(self.epochs, self.rounds, self._random.bytes)}

    def verify_member(self, certificate: bytes, _at_ms: int) -> Member:
        """What the registrar does with real certificates."""
        name, _, public = certificate.partition(b"\x00")
        role, _, client_id = name.decode().partition("/")
        if client_id in self.revoked:
            raise PeerError(Code.CERTIFICATE_REVOKED)
        return Member(client_id, role == "device", crypto.p256_public(public))

    async def restart(self) -> None:
        await super().restart()
        self.launch()

    async def close(self) -> None:
        for each in self.clients:
            each.go()
        tasks = [each.task for each in self.clients if each.task is not None]
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        await self.epochs.close()
        await super().close()
        assert [f for f in failures if isinstance(f, Exception)] == [], "a client broke down"

    def launch(self) -> None:
        """Every client that did not leave serves (again)."""
        for each in self.clients:
            each.launch()

    async def begin(self, toml: str | None = None) -> str:
        """A run with serving clients."""
        run_id = await self.start(toml or masked_task())
        self.launch()
        return run_id

    def kill_after(self, event: str, times: int) -> None:
        """Orders a kill -9 right behind the transaction that records this event for the nth time."""
        assert isinstance(self.database, Killable)
        self.kill = self.database.kill_after = (event, times)

    async def die(self) -> None:
        """Waits for the kill that was ordered, and starts again."""
        assert isinstance(self.database, Killable)
        assert self.kill is not None
        event, times = self.kill
        async with asyncio.timeout(self.PATIENCE_S):
            await self.database.killed.wait()
        self.kill = None
        await self.restart()
        assert await self.counted(event) >= times

    async def happened(self, event: str, times: int = 1) -> None:
        """As soon as an event is recorded so often."""

        async def often() -> bool:
            return await self.database.run(lambda c: recorded(c, event)) >= times

        await self.until(often, event)

    async def counted(self, event: str) -> int:
        return await self.database.run(lambda c: recorded(c, event))

    async def pass_time(self, ms: int) -> None:
        """Lets time pass in front of somebody who waits for it."""
        await self.asleep()
        self.clock.advance(ms)

    async def masked(self, run_id: str) -> list[ServerRound]:
        """All masked rounds of a run, oldest first."""

        def work(connection: Connection) -> list[ServerRound]:
            found = []
            for epoch in key_epochs(connection, run_id):
                found += masks.masked_of_epoch(connection, epoch.epoch)
            return found

        return await self.database.run(work)

    async def key_epochs(self, run_id: str) -> list[KeyEpoch]:
        return await self.database.run(lambda c: key_epochs(c, run_id))

    async def shared(self, run_id: str, clients: Sequence[str], rounds: int = 1) -> None:
        """The model is that of rounds in which exactly these clients were counted, with the same weight."""
        expected = np.zeros(self.parameters)
        for client_id in clients:
            expected[number_of(client_id)] = rounds / len(clients)
        np.testing.assert_allclose(await self.weights(run_id), expected, atol=2e-6)

    def nothing_revealed(self, round_: ServerRound) -> None:
        """No list of survivors was signed, no share was asked for."""
        assert round_.request is None
        assert round_.responses == ()
        assert round_.result is not None
        assert (round_.result.alive, round_.result.sum_digest) == (b"", b"")


def key_epochs(connection: Connection, run_id: str) -> list[KeyEpoch]:
    """All key epochs of a run, oldest first."""
    table = masks.key_epochs
    query = select(table.c.epoch).where(table.c.run_id == run_id).order_by(table.c.epoch)
    return [masks.load_epoch(connection, row.epoch) for row in connection.execute(query)]


@dataclass
class MaskedClient:
    """One client: what it keeps, and how it serves."""

    world: MaskedWorld
    id: str
    examples: int = 10
    leaves_before: str = ""
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
        path = self.world.blobs.path(ticket.model_digest)
        state = client.accept_round(
            self.state,
            opened,
            model_digest=hashlib.sha256(Path(path).read_bytes()).digest(),
            task_digest=hashlib.sha256(offer.task).digest(),
            verify_aggregator=verify_aggregator,
        )
        self.keep(state)
        encoding = opened.encoding
        update = np.frombuffer(unit(self.number, self.world.parameters), "<f4").copy()[: encoding.dimension]
        known = {"loss": 2.0 + self.number, "correct": 0.5}
        extras = {extra.name: known[extra.name] for extra in encoding.extras}
        seed = hashlib.sha256(f"{self.id} {opened.round_id} rounding".encode()).digest()
        words = ring.encode(encoding, update, self.examples, extras, seed)
        state, head = client.mask_report(self.state, opened, words, sign=client_sign(self.number + 1))
        self.keep(state)
        header = ReportHeader(
            opened.round_id, Encoding.RING32, words.nbytes, head.sha256, masked=codec.dumps(head)
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
