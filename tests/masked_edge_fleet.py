"""A fake aggregator that speaks masked rounds for one real device; the other seven members are pure clients here.

As `edge_fleet`, and with the real pure code of both sides: whatever the device says differently the second time is a
CONFLICTING_REPEAT, and the sum comes out right only if its masks and shares are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as Form

from fedless.protocol import crypto, identity, wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import (
    Encoding,
    Endpoints,
    Enrollment,
    Kind,
    Mode,
    Offer,
    PolicyMessage,
    Ticket,
)
from fedless.protocol.prg import Words
from fedless.protocol.secagg import assembly, client, codec, ring, server, setup
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.messages import (
    EpochKeys,
    EpochShares,
    MaskedReport,
    Member,
    RoundOpen,
    UnmaskResponse,
)
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.server import ServerRound
from fedless.protocol.secagg.state import ClientState
from fedless.v1 import rounds_pb2
from tests.edge_fleet import PARAMETERS, TICKET_KEY, FakeAggregator, Fleet, now_ms

DAY_MS = 86_400_000
OTHERS = tuple(f"other-{number}" for number in range(1, 8))
EXAMPLES = 10


class MaskedFleet(Fleet):
    """A fleet whose devices allow pairwise masks only."""

    def enrollment(self, client_id: str, key: ec.EllipticCurvePublicKey, endpoints: Endpoints) -> Enrollment:
        made = super().enrollment(client_id, key, endpoints)
        return replace(made, policy=PolicyMessage(modes=(Mode.PAIRWISE,)))


@dataclass
class Other:
    """One of the seven that never fail."""

    fleet: Fleet
    id: str
    state: ClientState = field(init=False)
    certificate: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.key = identity.new_key()
        self.state = ClientState(self.id)
        leaf = self.fleet.authority.issue(identity.Role.DEVICE, self.id, self.key.public_key())
        self.certificate = leaf.public_bytes(Form.DER)

    def sign(self, message: bytes) -> bytes:
        return crypto.ecdsa_sign(self.key, message)


def sign(message: bytes) -> bytes:
    return crypto.ed25519_sign(TICKET_KEY, message)


def verify_aggregator(signature: bytes, message: bytes) -> bool:
    return crypto.ed25519_verify(crypto.ed25519_public(TICKET_KEY), signature, message)


class MaskedAggregator(FakeAggregator):
    """One key epoch of one slot and its round, for `device` (a client id) and seven others."""

    def __init__(self, fleet: Fleet, device: str) -> None:
        super().__init__(fleet)
        self.device = device
        self.task = wire.task_to_bytes(fleet.task(mode=Mode.PAIRWISE, max_examples=1000))
        self.others = [Other(fleet, name) for name in OTHERS]
        self.epoch = ServerEpoch(100, 1, Trust.CHEATING)
        self.rows: dict[int, EpochShares] = {}
        self.masked: ServerRound | None = None
        self.total: Words = np.zeros(0, np.uint32)
        for other in self.others:
            other.state, keys = setup.begin_epoch(
                other.state, 100, 1, chain_key=hashlib.sha256(other.id.encode()).digest(),
                certificate=other.certificate, sign=other.sign,
            )  # fmt: skip
            self.accept_keys(keys)

    def verify_member(self, certificate: bytes, at_ms: int) -> Member:
        name, key = identity.verify_chain([certificate], self.fleet.authority.der, self.fleet.name, at_ms)
        return Member(name.id, name.role is identity.Role.DEVICE, key)

    def ticket(self, kind: Kind, round_id: int, salt: str = "") -> Ticket:
        """A wake-up of the device for this."""
        task = wire.task_from_bytes(self.task)
        nonce = hashlib.sha256(f"{kind} {round_id} {salt}".encode()).digest()[:16]
        return self.fleet.ticket(self.device, round_id, task, kind=kind, nonce=nonce)

    # -- M0 to M3

    def accept_keys(self, keys: EpochKeys) -> None:
        self.epoch = assembly.accept_keys(self.epoch, keys, at_ms=now_ms(), verify_member=self.verify_member)

    def PostEpochKeys(self, request: Any, context: Any) -> Any:
        with self._call("post_epoch_keys", context):
            keys = codec.loads(EpochKeys, wire.epoch_step_from_pb(request)[1])
            if self.epoch.roster is not None:
                if keys not in self.epoch.roster.entries:
                    raise PeerError(Code.CONFLICTING_REPEAT)
            else:
                self.accept_keys(keys)
                self._make_roster()
            return rounds_pb2.StepReceipt(now_ms=now_ms())

    def _make_roster(self) -> None:
        self.epoch = assembly.make_roster(
            self.epoch, minimum=8, graph_seed=bytes(32), at_ms=now_ms(), ends_at_ms=now_ms() + DAY_MS,
            verify_member=self.verify_member, sign=sign,
        )  # fmt: skip
        for other in self.others:
            other.state, shares = setup.accept_roster(
                other.state, self.epoch.sealed_roster, Policy(), verify_member=self.verify_member,
                verify_aggregator=verify_aggregator,
            )  # fmt: skip
            self._accept_shares(shares)

    def _accept_shares(self, shares: EpochShares) -> None:
        self.epoch = assembly.accept_shares(self.epoch, shares)
        self.rows[shares.index] = shares

    def GetRoster(self, request: Any, context: Any) -> Any:
        with self._call("get_roster", context):
            return wire.epoch_step_to_pb(100, codec.dumps(self.epoch.sealed_roster))

    def PostEpochShares(self, request: Any, context: Any) -> Any:
        with self._call("post_epoch_shares", context):
            self._accept_shares(codec.loads(EpochShares, wire.epoch_step_from_pb(request)[1]))
            if not self.epoch.members:
                self.epoch = assembly.activate(self.epoch, minimum=8, sign=sign)
                for other in self.others:
                    index = self.epoch.sealed_roster.index_of(other.id)
                    inbox = assembly.inbox_for(self.epoch, index, self.rows)
                    other.state, failed = setup.accept_inbox(
                        other.state, inbox, Policy(), verify_aggregator=verify_aggregator
                    )
                    assert failed == (), "the device sealed a box that cannot be opened"
            return rounds_pb2.StepReceipt(now_ms=now_ms())

    def GetInbox(self, request: Any, context: Any) -> Any:
        with self._call("get_inbox", context):
            index = self.epoch.sealed_roster.index_of(self.device)
            return wire.epoch_step_to_pb(100, codec.dumps(assembly.inbox_for(self.epoch, index, self.rows)))

    # -- M4, M5

    def open_masked(self, round_id: int) -> Ticket:
        """Opens the round; the seven report unit vectors at once."""
        ticket = self.ticket(Kind.TRAIN, round_id)
        encoding = ring.plan(n=8, dimension=PARAMETERS, clip=1.0, max_examples=1000)
        opened = RoundOpen(
            round_id, 100, 0, 1, ticket.model_digest, ticket.task_digest, encoding, self.epoch.prg, 6,
            ticket.not_after_ms, b"",
        )  # fmt: skip
        self.epoch, self.masked = server.open_round(self.epoch, opened, sign=sign)
        self.open(ticket, wire.task_from_bytes(self.task), encoding.report_bytes)
        self.total = np.zeros(encoding.words, np.uint32)
        for at, other in enumerate(self.others):
            self._report_of(other, self.masked.open, at)
        return ticket

    def _report_of(self, other: Other, opened: RoundOpen, at: int) -> None:
        other.state = client.accept_round(
            other.state, opened, model_digest=opened.model_digest, task_digest=opened.task_digest,
            verify_aggregator=verify_aggregator,
        )  # fmt: skip
        update = np.zeros(PARAMETERS, np.float32)
        update[at] = 1.0
        words = ring.encode(opened.encoding, update, EXAMPLES, {}, bytes([at]) * 32)
        other.state, head = client.mask_report(other.state, opened, words, sign=other.sign)
        self._accept(head, words)

    def _accept(self, head: MaskedReport, words: Words) -> None:
        assert self.masked is not None
        accepted = server.accept_report(
            self.epoch, self.masked, head, at_ms=now_ms(), verify_member=self.verify_member
        )
        if accepted is not self.masked:
            self.total += words
        self.masked = accepted

    def CheckIn(self, request: Any, context: Any) -> rounds_pb2.CheckInReply:
        with self._call("check_in", context):
            if request.round_id == 100:
                offer = Offer(self.task, now_ms() + 60_000, Encoding.RING32, 0, now_ms(), epoch_slots=1)
                return wire.check_in_reply_to_pb(offer)
            here = self._round(request.round_id)
            assert self.masked is not None
            opened = codec.dumps(self.masked.open)
            return wire.check_in_reply_to_pb(
                Offer(here.task, here.deadline_at_ms, Encoding.RING32, here.report_bytes, now_ms(), opened)
            )

    def PutReport(self, request_iterator: Any, context: Any) -> rounds_pb2.ReportReceipt:
        receipt: rounds_pb2.ReportReceipt = super().PutReport(request_iterator, context)
        [here] = self.rounds.values()
        if here.accepted and here.header is not None and self.masked is not None and not self.masked.request:
            head = codec.loads(MaskedReport, here.header.masked)
            self._accept(head, np.frombuffer(bytes(here.data), "<u4"))
            self.epoch, self.masked = server.close_reports(self.epoch, self.masked, sign=sign)
        return receipt

    # -- M6 to M8

    def GetUnmaskRequest(self, request: Any, context: Any) -> Any:
        with self._call("get_unmask_request", context):
            assert self.masked is not None
            message = codec.dumps(self.masked.request) if self.masked.request else b""
            return wire.round_step_to_pb(request.round_id, message)

    def PostUnmaskResponse(self, request: Any, context: Any) -> Any:
        with self._call("post_unmask_response", context):
            assert self.masked is not None
            response = codec.loads(UnmaskResponse, wire.round_step_from_pb(request)[1])
            self.masked = server.accept_response(self.epoch, self.masked, response)
            return rounds_pb2.StepReceipt(now_ms=now_ms())

    def opened_mean(self) -> ring.Decoded:
        """With the device's answer and those of five others: the device's shares are needed."""
        assert self.masked is not None
        assert self.masked.request is not None
        assert len(self.masked.responses) == 1, "the device has not answered"
        for other in self.others[:5]:
            other.state, response = client.answer_unmask(
                other.state, self.masked.request, verify_aggregator=verify_aggregator
            )
            self.masked = server.accept_response(self.epoch, self.masked, response)
        recovered, recovery = server.recover(self.epoch, self.masked)
        assert recovered.suspects == ()
        server.remove_masks(recovered, recovery, self.total)
        _, _, decoded = server.finish(self.epoch, recovered, self.total, sign=sign)
        return decoded
