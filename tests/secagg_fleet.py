"""Every party of a masked round in one process, with counting bytes as randomness.

Used by the unit and property tests and by the vectors' generator. Every state goes through its serialised
form after every step, so each run is also a test of a restart between any two messages. Certificates are
stand-ins (`device/<id>`, a zero byte, SubjectPublicKeyInfo): chains are tested with `identity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.secagg import assembly, client, codec, server, setup
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.messages import (
    EpochShares,
    MaskedReport,
    Member,
    RoundOpen,
    UnmaskResponse,
)
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.ring import Decoded, RingEncoding, plan
from fedless.protocol.secagg.server import ServerRound
from fedless.protocol.secagg.state import ClientState

T = TypeVar("T")
NOW_MS, END_MS = 1_000_000, 2_000_000
AGGREGATOR_PRIVATE = bytes(range(200, 232))


def counting(start: int, length: int = 32) -> bytes:
    """`length` bytes that count up from `start`, modulo 256."""
    return bytes((start + at) % 256 for at in range(length))


def chain_key(index: int, epoch: int) -> bytes:
    """ck_0 of member `index`: its index, the key epoch, then counting bytes."""
    return bytes([index, epoch]) + counting(0, 30)


def stored(value: T) -> T:
    """The value as it is after a restart."""
    return codec.loads(type(value), codec.dumps(value))


def client_sign(number: int) -> Callable[[bytes], bytes]:
    """The signer of the client whose P-256 key is the scalar `number`."""
    private = crypto.p256_private(number)
    return lambda message: crypto.ecdsa_sign(private, message)


def certificate_of(client_id: str, number: int, role: str = "device") -> bytes:
    """A stand-in for a certificate."""
    public = crypto.p256_public_der(crypto.p256_private(number).public_key())
    return f"{role}/{client_id}".encode() + b"\x00" + public


def verify_member(certificate: bytes, at_ms: int) -> Member:
    """What `identity` does with real certificates."""
    name, _, public = certificate.partition(b"\x00")
    role, _, client_id = name.decode().partition("/")
    if role not in {"device", "function"}:
        raise PeerError(Code.WRONG_ROLE)
    if at_ms > END_MS:
        raise PeerError(Code.CERTIFICATE_EXPIRED)
    return Member(client_id, role == "device", crypto.p256_public(public))


def aggregator_sign(message: bytes) -> bytes:
    """The aggregator's ticket key."""
    return crypto.ed25519_sign(AGGREGATOR_PRIVATE, message)


def verify_aggregator(signature: bytes, message: bytes) -> bool:
    """What a client does with the ticket key that it got when it enrolled."""
    return crypto.ed25519_verify(crypto.ed25519_public(AGGREGATOR_PRIVATE), signature, message)


@dataclass
class Fleet:
    """n clients (ids client-01, ..., so index i is client i) and an aggregator."""

    n: int
    slots: int = 1
    epoch: int = 1
    trust: Trust = Trust.CHEATING
    policy: Policy = field(init=False)
    states: dict[int, ClientState] = field(default_factory=dict)
    server: ServerEpoch = field(init=False)
    rows: dict[int, EpochShares] = field(default_factory=dict)
    spool: dict[int, tuple[MaskedReport, Words]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy = Policy(minimum_cohort=3, trust=self.trust)
        self.server = ServerEpoch(self.epoch, self.slots, self.trust)
        for i in self.everyone:
            self.states.setdefault(i, ClientState(self.id(i)))

    @property
    def everyone(self) -> range:
        return range(1, self.n + 1)

    @staticmethod
    def id(index: int) -> str:
        return f"client-{index:03d}"

    def keep(self, index: int, state: ClientState) -> None:
        self.states[index] = stored(state)

    # -- M0 to M3

    def offer(self, index: int) -> None:
        state, keys = setup.begin_epoch(
            self.states[index],
            self.epoch,
            self.slots,
            chain_key=chain_key(index, self.epoch),
            certificate=certificate_of(self.id(index), index),
            sign=client_sign(index),
            rates=(1000, 500),
        )
        self.keep(index, state)
        self.server = stored(
            assembly.accept_keys(self.server, stored(keys), at_ms=NOW_MS, verify_member=verify_member)
        )

    def make_roster(self) -> None:
        self.server = stored(
            assembly.make_roster(
                self.server,
                minimum=self.policy.minimum_cohort,
                graph_seed=counting(7),
                at_ms=NOW_MS,
                ends_at_ms=END_MS,
                verify_member=verify_member,
                sign=aggregator_sign,
            )
        )

    def share(self, index: int) -> None:
        state, shares = setup.accept_roster(
            self.states[index],
            stored(self.server.sealed_roster),
            self.policy,
            verify_member=verify_member,
            verify_aggregator=verify_aggregator,
        )
        self.keep(index, state)
        self.server = stored(assembly.accept_shares(self.server, stored(shares)))
        self.rows[index] = stored(shares)

    def activate(self) -> None:
        self.server = stored(
            assembly.activate(self.server, minimum=self.policy.minimum_cohort, sign=aggregator_sign)
        )

    def collect(self, index: int) -> tuple[int, ...]:
        inbox = stored(assembly.inbox_for(self.server, index, self.rows))
        state, failed = setup.accept_inbox(
            self.states[index], inbox, self.policy, verify_aggregator=verify_aggregator
        )
        self.keep(index, state)
        return failed

    def set_up(self, without_shares: Iterable[int] = ()) -> Fleet:
        """M0 to M3; members of `without_shares` drop out after M1."""
        gone = set(without_shares)
        for i in self.everyone:
            self.offer(i)
        self.make_roster()
        for i in self.everyone:
            if i not in gone:
                self.share(i)
        self.activate()
        for i in self.server.members:
            self.collect(i)
        return self

    # -- M4 to M8

    def opening(self, encoding: RingEncoding | None = None, **changes: object) -> RoundOpen:
        """An unsigned M4 for the next slot."""
        opened = RoundOpen(
            round_id=70 + self.server.next_slot,
            epoch=self.epoch,
            slot=self.server.next_slot,
            model_version=self.server.next_slot,
            model_digest=crypto.sha256(f"model {self.epoch} {self.server.next_slot}".encode()),
            task_digest=crypto.sha256(b"task"),
            encoding=encoding or plan(n=len(self.server.members), dimension=5, clip=1.0, max_examples=100),
            prg=crypto.Prg.AES,
            min_alive=self.server.sealed_roster.threshold,
            deadline_at_ms=END_MS,
            signature=b"",
        )
        return replace(opened, **changes)  # type: ignore[arg-type]

    def open(self, encoding: RingEncoding | None = None, **changes: object) -> ServerRound:
        opened = self.opening(encoding, **changes)
        epoch, round_ = server.open_round(self.server, opened, sign=aggregator_sign)
        self.server = stored(epoch)
        return stored(round_)

    def accept_round(self, index: int, opened: RoundOpen) -> None:
        state = client.accept_round(
            self.states[index],
            stored(opened),
            model_digest=opened.model_digest,
            task_digest=opened.task_digest,
            verify_aggregator=verify_aggregator,
        )
        self.keep(index, state)

    def mask(self, index: int, opened: RoundOpen, words: Words) -> MaskedReport:
        """M5 as it is journaled: head and masked words."""
        masked = words.copy()
        state, head = client.mask_report(self.states[index], opened, masked, sign=client_sign(index))
        self.keep(index, state)
        self.spool[index] = (stored(head), masked)
        return head

    def report(self, round_: ServerRound, index: int, words: Words) -> ServerRound:
        """M4, training, M5, and its acceptance."""
        self.accept_round(index, round_.open)
        head = self.mask(index, round_.open, words)
        return stored(
            server.accept_report(self.server, round_, head, at_ms=NOW_MS, verify_member=verify_member)
        )

    def close(self, round_: ServerRound) -> ServerRound:
        epoch, closed = server.close_reports(self.server, round_, sign=aggregator_sign)
        self.server = stored(epoch)
        return stored(closed)

    def answer(self, round_: ServerRound, index: int) -> UnmaskResponse:
        assert round_.request is not None
        state, response = client.answer_unmask(
            self.states[index], stored(round_.request), verify_aggregator=verify_aggregator
        )
        self.keep(index, state)
        return stored(response)

    def respond(self, round_: ServerRound, index: int) -> ServerRound:
        return stored(server.accept_response(self.server, round_, self.answer(round_, index)))

    def total(self, round_: ServerRound) -> Words:
        """The sum of the spooled vectors of the accepted reports, as after a restart."""
        vectors = [self.spool[reported.index][1] for reported in round_.reports]
        total = np.zeros_like(vectors[0])
        for vector in vectors:
            np.add(total, vector, out=total)
        return total

    def unmask(self, round_: ServerRound) -> tuple[ServerRound, Words, Decoded]:
        """Recovery, the exact sum, and M8."""
        recovered, recovery = server.recover(self.server, round_)
        total = self.total(round_)
        server.remove_masks(recovered, recovery, total)
        epoch, ended, decoded = server.finish(self.server, recovered, total, sign=aggregator_sign)
        self.server = stored(epoch)
        return stored(ended), total, decoded

    def run(
        self,
        words: Mapping[int, Words],
        holders: Sequence[int],
        encoding: RingEncoding | None = None,
    ) -> tuple[ServerRound, Words, Decoded]:
        """A whole round: `words` by reporting member, `holders` who answer M6."""
        round_ = self.open(encoding)
        for index, vector in words.items():
            round_ = self.report(round_, index, vector)
        round_ = self.close(round_)
        for index in holders:
            round_ = self.respond(round_, index)
        return self.unmask(round_)


def unit_words(encoding: RingEncoding, position: int) -> Words:
    """Ring words that identify their sender: 1 at `position`, its weight and extras included."""
    words: Words = np.zeros(encoding.words, dtype=word_dtype(encoding.bits))
    words[position] = 1
    words[encoding.dimension :] = 1
    return words
