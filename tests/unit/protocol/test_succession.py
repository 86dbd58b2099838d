"""Lists of whom to trust: followed step by step, and never backwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fedless.protocol import identity, wire
from fedless.protocol.crypto import ecdsa_sign, ed25519_public, ed25519_sign
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.listing import lists_of, values_of
from fedless.protocol.succession import follow, helper_member, list_bytes, sign_list
from fedless.protocol.trust import TrustKind, TrustList

FIRST, SECOND, THIRD, FOREIGN = (bytes([n]) * 32 for n in range(1, 5))
END = datetime(2050, 1, 1, tzinfo=UTC)


def public(*keys: bytes) -> tuple[bytes, ...]:
    return tuple(map(ed25519_public, keys))


def made(number: int, members: tuple[bytes, ...], by: bytes, **changes: object) -> TrustList:
    found = sign_list(
        "home", TrustKind.TICKET, number, members, ed25519_public(by), lambda m: ed25519_sign(by, m)
    )
    return replace(found, **changes)  # type: ignore[arg-type]


CHAIN = (
    made(10, public(FIRST, SECOND), FIRST),
    made(20, public(SECOND), SECOND),
    made(30, public(SECOND, THIRD), SECOND),
    made(40, public(THIRD), THIRD),
)


def code_of(lists: tuple[TrustList, ...], number: int = 0, fleet: str = "home") -> Code:
    with pytest.raises(PeerError) as caught:
        follow(fleet, TrustKind.TICKET, public(FIRST), number, lists)
    return caught.value.code


@pytest.mark.parametrize("steps", range(5))
def test_client_follows_however_far_it_is_behind(steps: int) -> None:
    members, number = follow("home", TrustKind.TICKET, public(FIRST), 0, CHAIN[:steps])
    assert (members, number) == (
        (CHAIN[steps - 1].members, CHAIN[steps - 1].number) if steps else (public(FIRST), 0)
    )
    assert follow("home", TrustKind.TICKET, members, number, reversed(CHAIN[steps:])) == (public(THIRD), 40)


def test_list_that_was_not_signed_by_a_trusted_key_is_refused() -> None:
    assert code_of((made(10, public(FOREIGN), FOREIGN),)) is Code.BAD_SIGNATURE
    assert code_of(CHAIN[1:]) is Code.BAD_SIGNATURE, "the link between is missing"
    stolen = made(10, public(FOREIGN), FOREIGN, signed_by=CHAIN[0].signed_by)
    assert code_of((stolen,)) is Code.BAD_SIGNATURE


@pytest.mark.parametrize(
    "change",
    [
        {"number": 11},
        {"members": public(FOREIGN)},
        {"members": public(FIRST)},
        {"members": tuple(reversed(public(FIRST, SECOND)))},
        {"signature": bytes(64)},
        {"signature": b""},
    ],
    ids=["number", "foreign member", "fewer members", "order", "zeros", "none"],
)
def test_changed_list_is_refused(change: dict[str, object]) -> None:
    assert code_of((replace(CHAIN[0], **change),)) is Code.BAD_SIGNATURE  # type: ignore[arg-type]


def test_rollback_to_an_older_key_list_is_refused() -> None:
    back = made(5, public(FIRST), FIRST)  # signed by a key that is still trusted, but long before
    assert code_of((back,), number=10) is Code.TRUST_OLDER
    assert code_of((CHAIN[0],), number=10) is Code.TRUST_OLDER, "the same once more"
    assert code_of((CHAIN[0], made(10, public(FIRST), FIRST))) is Code.TRUST_OLDER, "two lists of one number"


def test_list_of_another_fleet_or_kind_is_refused() -> None:
    assert code_of(CHAIN, fleet="garden") is Code.BAD_SIGNATURE
    other = replace(CHAIN[0], kind=TrustKind.PUBLISHER)
    with pytest.raises(PeerError) as caught:
        follow("home", TrustKind.PUBLISHER, public(FIRST), 0, (other,))
    assert caught.value.code is Code.BAD_SIGNATURE
    assert follow("home", TrustKind.TICKET, public(FIRST), 0, (other,)) == (public(FIRST), 0), (
        "not its business"
    )


# -- authorities


class Root:
    def __init__(self) -> None:
        self.key = identity.new_key()
        self.der = identity.authority_certificate("home", self.key, END, follows=True).public_bytes(
            Encoding.DER
        )

    def sign(self, message: bytes) -> bytes:
        return ecdsa_sign(self.key, message)


def roots(
    number: int, members: tuple[bytes, ...], signer: bytes, sign: Callable[[bytes], bytes]
) -> TrustList:
    return sign_list("home", TrustKind.AUTHORITY, number, members, signer, sign)


def test_new_authority_is_believed_once_the_old_one_has_signed_it() -> None:
    old, new = Root(), Root()
    chain = (roots(1, (old.der, new.der), old.der, old.sign), roots(2, (new.der,), new.der, new.sign))
    assert follow("home", TrustKind.AUTHORITY, (old.der,), 0, chain) == ((new.der,), 2)


def test_new_root_that_the_old_one_has_not_signed_is_refused() -> None:
    old, new = Root(), Root()
    for signer in (new.der, old.der):  # by its own word, or by a forged one
        forged = roots(1, (old.der, new.der), signer, new.sign)
        with pytest.raises(PeerError) as caught:
            follow("home", TrustKind.AUTHORITY, (old.der,), 0, (forged,))
        assert caught.value.code is Code.BAD_SIGNATURE


def test_list_of_authorities_that_holds_none_is_refused() -> None:
    old = Root()
    with pytest.raises(PeerError) as caught:
        follow("home", TrustKind.AUTHORITY, (old.der,), 0, (roots(1, (b"nonsense",), old.der, old.sign),))
    assert caught.value.code is Code.FOREIGN_CERTIFICATE


def test_two_authorities_of_one_fleet_have_different_names() -> None:
    first, second = Root(), Root()
    leaves = []
    for root in (first, second):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        name = identity.Name("home", identity.Role.DEVICE, "dev-1")
        issuer = x509.load_der_x509_certificate(root.der)
        leaf = identity.leaf_builder(name, identity.new_key().public_key(), issuer, END).sign(
            root.key, hashes.SHA256()
        )
        leaves.append(leaf.public_bytes(Encoding.DER))
    at_ms = 1_790_000_000_000
    for leaf_der, root in zip(leaves, (first, second), strict=True):
        assert identity.verify_chain([leaf_der], (first.der, second.der), "home", at_ms)[0].id == "dev-1"
        other = second if root is first else first
        with pytest.raises(PeerError) as caught:
            identity.verify_chain([leaf_der], other.der, "home", at_ms)
        assert caught.value.code is Code.FOREIGN_CERTIFICATE


# -- helpers


def test_list_of_helpers_that_the_aggregators_key_signed_is_refused() -> None:
    """Though the device trusts that key for tickets, and the aggregator hands the lists out."""
    pinned, other = (helper_member(ed25519_public(key), key) for key in (FIRST, SECOND))
    for signer in (pinned, helper_member(ed25519_public(THIRD), THIRD), ed25519_public(THIRD)):
        forged = sign_list(
            "home", TrustKind.HELPER, 1, (pinned, other), signer, lambda m: ed25519_sign(THIRD, m)
        )
        with pytest.raises(PeerError) as caught:
            follow("home", TrustKind.HELPER, (pinned,), 0, (forged,))
        assert caught.value.code is Code.BAD_SIGNATURE
    made_by_helper = sign_list(
        "home", TrustKind.HELPER, 1, (pinned, other), pinned, lambda m: ed25519_sign(FIRST, m)
    )
    assert follow("home", TrustKind.HELPER, (pinned,), 0, (made_by_helper,)) == ((pinned, other), 1)
    assert wire.trust_lists_from_pb(wire.trust_lists_to_pb((made_by_helper,))) == (made_by_helper,)
    short = replace(made_by_helper, members=(pinned[:32],))
    with pytest.raises(PeerError) as caught:
        wire.trust_lists_from_pb(wire.trust_lists_to_pb((short,)))
    assert caught.value.code is Code.MALFORMED


def test_vectors_are_what_is_signed_and_followed() -> None:
    vectors = json.loads((Path(__file__).parents[2] / "vectors" / "trust.json").read_text())
    for each in vectors["chains"]:
        kind, lists = TrustKind(each["kind"]), lists_of(each["lists"])
        trusted = tuple(bytes.fromhex(member) for member in each["trusted"])
        for made, signed in zip(lists, each["signed"], strict=True):
            assert list_bytes(vectors["fleet"], kind, made.number, made.members).hex() == signed
        members, number = follow(vectors["fleet"], kind, trusted, 0, lists)
        assert (members, number) == (lists[-1].members, lists[-1].number)
        assert values_of(lists) == each["lists"]
    for each in vectors["bad"]:
        trusted = tuple(bytes.fromhex(member) for member in each["trusted"])
        with pytest.raises(PeerError) as caught:
            follow(
                vectors["fleet"], TrustKind(each["kind"]), trusted, each["number"], lists_of(each["lists"])
            )
        assert caught.value.code.value == each["code"], each["name"]


# -- the border


def test_lists_travel_whole_and_unknown_kinds_are_passed_over() -> None:
    messages = wire.trust_lists_to_pb(CHAIN)
    assert wire.trust_lists_from_pb(messages) == CHAIN
    messages[0].kind = "weather"
    assert wire.trust_lists_from_pb(messages) == CHAIN[1:]


@pytest.mark.parametrize(
    "change",
    [
        {"members": ()},
        {"members": (b"short",)},
        {"members": (bytes(32),) * 17},
        {"number": 0},
        {"signed_by": b"x"},
    ],
    ids=["nobody", "short key", "too many", "number", "signer"],
)
def test_malformed_list_is_refused_at_the_border(change: dict[str, object]) -> None:
    bad = replace(CHAIN[0], **change)  # type: ignore[arg-type]
    with pytest.raises(PeerError) as caught:
        wire.trust_lists_from_pb(wire.trust_lists_to_pb([bad]))
    assert caught.value.code is Code.MALFORMED
