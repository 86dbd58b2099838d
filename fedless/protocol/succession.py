"""*Pure.* How trust is handed on: each list of keys or authorities is signed by a member of the list before it.

So a client that has been away follows the lists one after another, whoever hands them to it, and nobody who was not
trusted can become so. A list's number only rises: an older one, though it was signed once, is refused. The fleet's
side signs (`sign_list`), the client's side follows (`follow`).

Signed bytes: `LABEL || enc(fleet, kind, number, [members])` (`crypto.enc`); Ed25519 by keys, ECDSA P-256 with SHA-256
by authorities. A list of helpers is signed by a helper's own key: the aggregator, which hands it out, cannot make one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fedless.protocol.crypto import KEY_BYTES, ecdsa_verify, ed25519_verify, enc, key_id, sha256
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.identity import authority_key
from fedless.protocol.trust import TrustKind, TrustList

LABEL = b"fedless-trust\0"


def list_bytes(fleet: str, kind: TrustKind, number: int, members: Sequence[bytes]) -> bytes:
    """What is signed of a list."""
    return LABEL + enc(fleet, kind.value, number, list(members))


def helper_member(signing_key: bytes, hpke_key: bytes) -> bytes:
    """A helper as lists name it: its Ed25519 key and the digest of its HPKE key (both public, 32 bytes each)."""
    return signing_key + sha256(hpke_key)


def sign_list(
    fleet: str,
    kind: TrustKind,
    number: int,
    members: Sequence[bytes],
    signer: bytes,
    sign: Callable[[bytes], bytes],
) -> TrustList:
    """The fleet: a new list. `signer` is the member of the list before whose key `sign` uses."""
    signature = sign(list_bytes(fleet, kind, number, members))
    return TrustList(kind, number, tuple(members), key_id(signer), signature)


def follow(
    fleet: str, kind: TrustKind, trusted: Sequence[bytes], number: int, lists: Iterable[TrustList]
) -> tuple[tuple[bytes, ...], int]:
    """The client: whom it trusts after these lists (those of other kinds are passed over), and the newest one's number.

    `trusted` and `number` are what it has. Raises `PeerError` TRUST_OLDER for a list that is not newer than what it
    has, BAD_SIGNATURE for one that nobody whom it trusts has signed; then nothing is to be taken over.
    """
    members = tuple(trusted)
    for each in sorted((one for one in lists if one.kind is kind), key=lambda one: one.number):
        if each.number <= number:
            detail = f"Number {each.number} of {kind.value}; number {number} is known here."
            raise PeerError(Code.TRUST_OLDER, detail)
        signer = next((member for member in members if key_id(member) == each.signed_by), None)
        if signer is None or not each.members or not _fits(each, signer, fleet):
            raise PeerError(
                Code.BAD_SIGNATURE, f"Nobody whom this client trusts has signed the new list of {kind.value}."
            )
        members, number = each.members, each.number
    return members, number


def _fits(each: TrustList, signer: bytes, fleet: str) -> bool:
    message = list_bytes(fleet, each.kind, each.number, each.members)
    if each.kind is not TrustKind.AUTHORITY:
        return ed25519_verify(signer[:KEY_BYTES], each.signature, message)
    for member in each.members:
        authority_key(member)
    return ecdsa_verify(authority_key(signer), each.signature, message)
