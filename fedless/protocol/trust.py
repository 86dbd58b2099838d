"""*Pure.* Lists of whom a fleet's clients trust, as they travel; what makes one good is `succession`'s to say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MEMBERS_MAX = 16
LISTS_MAX = 64


class TrustKind(StrEnum):
    """What somebody is trusted for: to wake clients, to write what they run, to say who is who, to open sums."""

    TICKET = "ticket"
    PUBLISHER = "publisher"
    AUTHORITY = "authority"
    HELPER = "helper"


HELPER_MEMBER_BYTES = 64
"""A helper in a list: its Ed25519 signing key, and the SHA-256 of its HPKE key."""


@dataclass(frozen=True)
class TrustList:
    """Who is trusted from now on, signed by one of those who were before.

    `number` rises with each list of a kind; 0 is what a client got when it enrolled in a fleet that has no list yet.
    `members` are raw Ed25519 keys (32 bytes each), of authorities their certificates (DER), of helpers both keys (see
    above). `signed_by` names the signer: the first 16 bytes of the SHA-256 of its member.
    """

    kind: TrustKind
    number: int
    members: tuple[bytes, ...]
    signed_by: bytes
    signature: bytes
