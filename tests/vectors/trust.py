"""Vectors of the lists that hand trust on: what is signed, chains that are followed, lists that must be refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedless.protocol.crypto import ed25519_public, ed25519_sign, x25519_public
from fedless.protocol.errors import Code
from fedless.protocol.listing import values_of
from fedless.protocol.succession import helper_member, list_bytes, sign_list
from fedless.protocol.trust import TrustKind, TrustList
from tests.secagg_fleet import AGGREGATOR_PRIVATE, counting

FLEET = "greenhouse"
OLD, NEW = counting(1), counting(2)
"""Ed25519 keys, of the helper too; its HPKE keys are X25519 keys of the same bytes."""


def member(kind: TrustKind, key: bytes) -> bytes:
    """Whom a key stands for."""
    public = ed25519_public(key)
    return helper_member(public, x25519_public(key)) if kind is TrustKind.HELPER else public


def made(kind: TrustKind, number: int, keys: Sequence[bytes], signer: bytes, named: bytes = b"") -> TrustList:
    """A list signed by a key, in the name of that key or of another one."""
    members = [member(kind, key) for key in keys]
    return sign_list(
        FLEET,
        kind,
        number,
        members,
        member(kind, named or signer),
        lambda message: ed25519_sign(signer, message),
    )


def chain(kind: TrustKind) -> tuple[TrustList, ...]:
    """Old; both; new."""
    return made(kind, 1_790_000_000, (OLD, NEW), OLD), made(kind, 1_790_000_060, (NEW,), NEW)


def trust_vectors() -> dict[str, Any]:
    """Chains of ticket keys and of helpers, and what must be refused of the latter."""
    return {
        "fleet": FLEET,
        "chains": [_chain(kind) for kind in (TrustKind.TICKET, TrustKind.HELPER)],
        "bad": [_bad(*each) for each in _bads()],
    }


def _chain(kind: TrustKind) -> dict[str, Any]:
    lists = chain(kind)
    return {
        "kind": kind,
        "trusted": [member(kind, OLD)],
        "signed": [list_bytes(FLEET, kind, each.number, each.members) for each in lists],
        "lists": values_of(lists),
    }


def _bads() -> list[tuple[str, int, tuple[TrustList, ...], Code]]:
    kind = TrustKind.HELPER
    first, second = chain(kind)
    aggregators = AGGREGATOR_PRIVATE
    return [
        ("by the aggregator", 0, (made(kind, 7, (OLD, aggregators), aggregators),), Code.BAD_SIGNATURE),
        ("in the helper's name", 0, (made(kind, 7, (OLD, NEW), aggregators, OLD),), Code.BAD_SIGNATURE),
        ("without the one between", 0, (second,), Code.BAD_SIGNATURE),
        ("an older one", second.number, (first,), Code.TRUST_OLDER),
    ]


def _bad(name: str, number: int, lists: tuple[TrustList, ...], code: Code) -> dict[str, Any]:
    trusted = [member(TrustKind.HELPER, OLD)]
    return {
        "name": name, "kind": TrustKind.HELPER, "number": number, "trusted": trusted, "lists": values_of(lists),
        "code": code.value,
    }  # fmt: skip
