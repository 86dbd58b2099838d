"""What a helper decides about one request, whoever brought it: whose certificates count, once, and the sum.

Called by `service` (gRPC) and by `function` (a signed call). The clock and the operating system's randomness are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedless.helper.remembering import Remembering
from fedless.protocol import identity
from fedless.protocol.crypto import P256Private, ecdsa_sign, x25519_public
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words
from fedless.protocol.secagg.helper import (
    HelperRules,
    RefusedReports,
    check_request,
    close_set,
    sign_sum,
    sum_masks,
)
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, MaskSum
from fedless.protocol.secagg.messages import Member

LATE_MS = 3_600_000
"""A function's certificate ends with its round; the aggregator may ask about that round for so much longer."""


@dataclass(frozen=True)
class Demands:
    """What the helper demands of a set, and how large a request may be: `words_max` of a vector."""

    rules: HelperRules = field(default_factory=HelperRules)
    reports_max: int = 10_000
    words_max: int = 100_000_000

    def check_size(self, opened: HelperOpen, reports: int) -> None:
        """Raise `PeerError(OUT_OF_RANGE)` for a request that is larger than it may be."""
        if opened.encoding.words > self.words_max:
            raise PeerError(Code.OUT_OF_RANGE, f"Expected at most {self.words_max} words.")
        if reports > min(opened.n_max, self.reports_max):
            most = min(opened.n_max, self.reports_max)
            raise PeerError(Code.OUT_OF_RANGE, f"Expected at most {most} reports.")


@dataclass(frozen=True)
class Trust:
    """Whose certificates count: the fleet, its authority (DER; or both while one follows another), and who is denied.

    `denied` are client ids, or a file of them.
    """

    fleet: str
    authority: identity.Roots
    denied: Path | frozenset[str] | None = None

    def denied_ids(self) -> frozenset[str]:
        """The ids in the deny list; a file is read again for each set."""
        if isinstance(self.denied, Path):
            return read_denied(self.denied.read_text("utf-8"))
        return self.denied or frozenset()

    def member(self, certificate: bytes, at_ms: int, denied: frozenset[str]) -> Member:
        """Whose a client's certificate is. Raises `PeerError` by name."""
        name, key = identity.verify_chain([certificate], self.authority, self.fleet, at_ms)
        if name.role not in identity.CLIENT_ROLES:
            raise PeerError(Code.WRONG_ROLE, f"Expected a device or a function, found {name.role}.")
        if name.id in denied:
            raise PeerError(Code.CERTIFICATE_REVOKED, f"It is {name.id}'s.")
        return Member(name.id, name.role is identity.Role.DEVICE, key)

    def caller(self, certificate: bytes, at_ms: int) -> Member:
        """The fleet's aggregator, whose certificate (DER) it is. Raises `PeerError`."""
        name, key = identity.verify_chain([certificate], self.authority, self.fleet, at_ms)
        if name.role is not identity.Role.AGGREGATOR:
            raise PeerError(Code.WRONG_ROLE, f"Expected role aggregator, found {name.role}.")
        return Member(name.id, is_device=False, public_key=key)


def read_denied(text: str) -> frozenset[str]:
    """The ids in a deny list's text: one a line, `#` begins a comment."""
    return frozenset(filter(None, (line.partition("#")[0].strip() for line in text.splitlines())))


@dataclass(frozen=True)
class Helper:
    """The helper without its door: decides on one request, records it, and sums.

    `clock`: Unix ms. `randomness(n)`: n bytes of the OS's CSPRNG, for the noise of a round. `hpke`: its private HPKE
    keys as they are now, two while one follows another: each opens what was sealed to it, until it is given up.
    """

    trust: Trust
    demands: Demands
    memory: Remembering
    clock: Callable[[], int]
    randomness: Callable[[int], bytes]
    key: P256Private = field(repr=False)
    hpke: Callable[[], tuple[bytes, ...]] = field(repr=False)

    def private_key(self, public: bytes) -> bytes:
        """The one of its HPKE keys (32 bytes) that this is the public key of; the first, if it is of none."""
        own = self.hpke()
        return next((each for each in own if x25519_public(each) == public), own[0])

    def close(self, request: CloseRequest) -> tuple[MaskSum, Words] | RefusedReports:
        """The signed sum of masks of a set, or the reports that keep it from being closed.

        Raises `PeerError` for a set that is refused as a whole.
        """
        private = self.private_key(request.open.helper_key)
        check_request(request, self.demands.rules, own_key=x25519_public(private))
        known = self.memory.remembered(request.open.context)
        # A repeat is judged as of the first time: the answer was given, and must not change with the clock.
        now_ms = self.clock()
        at_ms = (
            max(min(now_ms, request.open.deadline_at_ms), now_ms - LATE_MS) if known is None else known.at_ms
        )
        denied = self.trust.denied_ids() if known is None else frozenset()
        decided = close_set(
            request,
            self.demands.rules,
            known.closed if known else None,
            hpke_private=private,
            at_ms=at_ms,
            verify_member=lambda certificate, moment: self.trust.member(certificate, moment, denied),
        )
        if isinstance(decided, RefusedReports):
            return decided
        closed = self.memory.record(decided, self.randomness(32), at_ms)
        if isinstance(closed, RefusedReports):
            return closed
        words = sum_masks(decided, request.open, noise_seed=closed.noise_seed)
        return sign_sum(decided, words, sign=lambda message: ecdsa_sign(self.key, message)), words
