"""The whole aggregator in helper mode, and the real helper without its port: real memory, certificates and clients.

Client number i reports the i-th unit vector, masked with the real client code. `Calls` stands between aggregator and
helper: it may be away, lose an answer, lie, or wait until the aggregator is killed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aggregator.authority import Authority, Callers
from aggregator.epoch_records import Signing
from aggregator.helpers import HelperRounds
from aggregator.link import Answer, SecondParty
from aggregator.masked import MaskedMode
from aggregator.tickets import Tickets
from fedless.helper.closing import Demands, Helper, Trust
from fedless.helper.memory import Memory
from fedless.protocol import crypto, identity
from fedless.protocol.crypto import start_digest
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.identity import Name, Role
from fedless.protocol.messages import CheckIn, Encoding, Kind, Mode, Offer, ReportHeader
from fedless.protocol.prg import Words
from fedless.protocol.secagg import codec, helper, ring
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport
from fedless.protocol.secagg.messages import Member
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.state import ClientState
from tests.simulation.world import FLEET, KEY, KNOWN, World, masked_update, number_of, pieces, task

CLIENTS = 10
UNMASK_MS = 60_000
HPKE_PRIVATE = bytes(range(100, 132))
HPKE_PUBLIC = crypto.x25519_public(HPKE_PRIVATE)
POLICY = Policy(helper_key_digest=crypto.sha256(HPKE_PUBLIC))


def helper_task(size: int = 8, minimum: int = 8, devices: int = 0, rounds: int = 1, **keys: Any) -> str:
    text = task(
        size=size, minimum=minimum, mode="helper", over_selection=1.25, devices=devices, rounds=rounds, **keys
    )
    return text + f"[secagg]\nunmask_s = {UNMASK_MS // 1000}\n"


@dataclass(frozen=True)
class Certified:
    """A key and the certificate of it."""

    key: crypto.P256Private
    leaf: bytes

    @classmethod
    def by(cls, authority: Authority, role: Role, name: str, now_ms: int) -> Certified:
        key = identity.new_key()
        issued = authority.issue(Name(FLEET, role, name), identity.make_csr(key), now_ms, 30)
        return cls(key, issued.chain_der[0])

    @classmethod
    def function(cls, authority: Authority, name: str, until_ms: int) -> Certified:
        """Of one invocation: it ends with the round."""
        key = identity.new_key()
        named = Name(FLEET, Role.FUNCTION, name)
        return cls(key, authority.issue_until(named, identity.make_csr(key), until_ms).chain_der[0])

    def sign(self, message: bytes) -> bytes:
        return crypto.ecdsa_sign(self.key, message)


class Calls:
    """The wire between aggregator and helper. `asked` keeps the ids of each set that came through."""

    def __init__(self, party: SecondParty, second: Helper) -> None:
        self.party = party
        self.helper = second
        self.asked: list[list[str]] = []
        self.away = 0
        self.answers_lost = 0
        self.lie: Callable[[Answer], Answer] = lambda answer: answer
        self.before: Callable[[], Awaitable[Any]] | None = None
        self.after: Callable[[], Awaitable[Any]] | None = None

    async def close(self, request: CloseRequest, timeout_ms: int) -> Answer:
        if self.away:
            self.away -= 1
            raise PeerError(Code.HELPER_UNREACHABLE, "UNAVAILABLE: nobody listens.")
        if self.before is not None:
            await self.before()
        self.asked.append([report.client_id for report in request.reports])
        answer = await asyncio.to_thread(self.helper.close, request)
        if self.answers_lost:
            self.answers_lost -= 1
            raise PeerError(Code.HELPER_UNREACHABLE, "UNAVAILABLE: connection reset.")
        if self.after is not None:
            await self.after()
        return self.lie(answer)


@dataclass
class HelperWorld(World):
    """One aggregator, one helper, ten clients."""

    count: int = CLIENTS
    policy: Policy = POLICY
    authority: Authority = field(init=False)
    calls: Calls = field(init=False)
    certified: dict[str, Certified] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.authority = Authority.create(FLEET, self.clock.now_ms)
        own = Certified.by(self.authority, Role.HELPER, "main", self.clock.now_ms)
        self.denied = self.folder / "denied.txt"
        self.denied.touch()
        self.memory = Memory(self.folder / "helper")
        second = Helper(
            trust=Trust(FLEET, self.authority.der, self.denied),
            demands=Demands(),
            memory=self.memory,
            clock=self.clock,
            randomness=bytes,
            key=own.key,
            hpke=lambda: (HPKE_PRIVATE,),
        )
        member = Member("main", is_device=False, public_key=own.key.public_key())
        self.calls = Calls(SecondParty("", own.leaf, HPKE_PUBLIC, member), second)
        for number in range(self.count):
            name = f"client-{number}"
            self.certified[name] = Certified.by(self.authority, Role.DEVICE, name, self.clock.now_ms)
        super().__post_init__()

    def modes(self, _tickets: Tickets, outside: dict[str, Any]) -> dict[Mode, MaskedMode]:
        callers = Callers(self.authority.der, FLEET)
        signing = Signing(lambda message: crypto.ed25519_sign(KEY, message), callers.member)
        random = self._random.bytes
        return {
            Mode.HELPER: HelperRounds(
                self.database, self.spool, self.calls, signing, random=random, **outside
            )
        }

    async def close(self) -> None:
        await super().close()
        self.memory.close()

    # -- clients

    async def opened(self, client_id: str, nth: int = 1) -> HelperOpen:
        """What a client is told when it checks in, checked as a client does."""
        ticket = await self.ticket(client_id, nth)
        offer = await self.coordinator.check_in(client_id, CheckIn(ticket.round_id, ticket.nonce))
        assert isinstance(offer, Offer), offer
        opened = codec.loads(HelperOpen, offer.round_open)
        public = crypto.ed25519_public(KEY)
        helper.accept_helper_round(
            opened,
            self.policy,
            ClientState(client_id),
            model_digest=start_digest(ticket.model_digest, ticket.control_digest),
            task_digest=hashlib.sha256(offer.task).digest(),
            verify_aggregator=lambda signature, message: crypto.ed25519_verify(public, signature, message),
        )
        assert opened.deadline_at_ms == offer.deadline_at_ms
        assert opened.encoding.report_bytes == offer.report_bytes
        return opened

    def mask(
        self, client_id: str, opened: HelperOpen, kind: Kind = Kind.TRAIN, seed: bytes = b""
    ) -> tuple[HelperReport, Words]:
        """A masked report: the unit vector, 10 examples, a loss of 2."""
        own = self.certified[client_id]
        fresh = hashlib.sha256(f"{client_id} {opened.round_id}".encode()).digest()
        update = masked_update(number_of(client_id), opened.encoding.dimension)
        means = {extra.name: KNOWN[extra.name] for extra in opened.encoding.extras}
        words = ring.encode(opened.encoding, update, 10, means, fresh)
        head = helper.mask_for_helper(
            opened, client_id, own.leaf, words, seed=seed or fresh[::-1], sign=own.sign
        )
        return head, words

    async def send_masked(self, client_id: str, head: HelperReport, words: Words, round_id: int) -> None:
        data = words.tobytes()
        header = ReportHeader(round_id, Encoding.RING32, len(data), head.sha256, masked=codec.dumps(head))
        offset, complete = await self.coordinator.begin_report(client_id, header)
        if not complete:
            await self.coordinator.put_report(client_id, round_id, offset, pieces(data[offset:]))

    async def take_part(self, client_id: str, nth: int = 1, seed: bytes = b"") -> HelperReport:
        """A whole pass of an honest client; with `seed`, of one whose randomness repeats itself."""
        opened = await self.opened(client_id, nth)
        head, words = self.mask(client_id, opened, seed=seed)
        await self.send_masked(client_id, head, words, opened.round_id)
        return head

    async def pass_time_until(self, holds: Callable[[], Awaitable[Any]], step_ms: int = 1_000) -> Any:
        """The first true answer, while time goes on."""

        async def later() -> Any:
            self.clock.advance(step_ms)
            return await holds()

        return await self.until(later)

    async def ended_in_time(self, run_id: str) -> Any:
        async def over() -> Any:
            info = await self.runs.show(run_id)
            return info if info.state != "running" else None

        return await self.pass_time_until(over)

    async def mean(self, run_id: str) -> list[float]:
        """The model's weights, rounded to what the ring keeps of them."""
        return [round(weight, 6) for weight in await self.weights(run_id)]

    def swap_key(self) -> None:
        """From now on the aggregator opens rounds for another helper's key."""
        other = crypto.x25519_public(bytes(range(32)))
        self.calls.party = replace(self.calls.party, key=other)


def mean_of(clients: list[str]) -> list[float]:
    """The model in which exactly these clients were counted."""
    vector = np.zeros(16)
    for client_id in clients:
        vector[number_of(client_id)] = 1.0 / len(clients)
    return [round(float(np.float32(weight)), 6) for weight in vector]
