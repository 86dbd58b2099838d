"""The aggregator's side of a key epoch's set-up, and when a key epoch ends."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from fedless.protocol import crypto
from fedless.protocol.crypto import Prg
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.secagg import assembly, setup
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.messages import Member
from fedless.protocol.secagg.ring import plan
from tests.secagg_fleet import (
    END_MS,
    NOW_MS,
    Fleet,
    aggregator_sign,
    certificate_of,
    client_sign,
    verify_member,
)

ENCODING = plan(n=8, dimension=8, clip=1.0, max_examples=10)


@pytest.fixture(scope="module")
def ready() -> Fleet:
    return Fleet(8, slots=3).set_up()


@pytest.fixture
def fleet(ready: Fleet) -> Fleet:
    return copy.deepcopy(ready)


def test_cohort_over_the_maximum_is_our_own_fault() -> None:
    one = Fleet(1)
    one.offer(1)
    offer = one.server.offers[0]
    offers = tuple(
        dataclasses.replace(offer, client_id=f"c{number}", certificate=certificate_of(f"c{number}", number))
        for number in range(1, 130)
    )
    crowded = ServerEpoch(1, 1, Trust.CHEATING, offers=offers)
    with pytest.raises(LocalError):
        assembly.make_roster(
            crowded,
            minimum=8,
            graph_seed=bytes(32),
            at_ms=0,
            ends_at_ms=1,
            verify_member=verify_member,
            sign=aggregator_sign,
        )


def test_client_that_the_others_would_refuse_is_left_out_of_the_roster() -> None:
    """One short certificate or a shared certificate key must not cost the whole cohort its key epoch."""
    fleet = Fleet(8)
    for index in fleet.everyone:
        fleet.offer(index)

    def ends_early(certificate: bytes, at_ms: int) -> Member:
        member = verify_member(certificate, at_ms)
        if member.client_id == "client-003" and at_ms > NOW_MS:
            raise PeerError(Code.CERTIFICATE_EXPIRED)
        if member.client_id == "client-005":
            return dataclasses.replace(member, public_key=crypto.p256_private(4).public_key())
        return member

    roster = assembly.make_roster(
        fleet.server,
        minimum=6,
        graph_seed=bytes(32),
        at_ms=NOW_MS,
        ends_at_ms=END_MS,
        verify_member=ends_early,
        sign=aggregator_sign,
    ).sealed_roster
    assert [entry.client_id for entry in roster.entries] == [Fleet.id(i) for i in (1, 2, 4, 6, 7, 8)]


def test_client_with_another_ones_keys_is_refused_alone() -> None:
    fleet = Fleet(3)
    fleet.offer(1)
    stolen = dataclasses.replace(
        fleet.server.offers[0], client_id="client-002", certificate=certificate_of("client-002", 2)
    )
    stolen = dataclasses.replace(stolen, signature=client_sign(2)(stolen.signed))
    twice = dataclasses.replace(stolen, channel_key=stolen.mask_keys[0])
    for keys in (stolen, twice):
        with pytest.raises(PeerError) as refusal:
            assembly.accept_keys(fleet.server, keys, at_ms=NOW_MS, verify_member=verify_member)
        assert refusal.value.code is Code.BAD_ROSTER


def test_repeated_different_calls_are_refused() -> None:
    fleet = Fleet(3, trust=Trust.CURIOUS)
    for index in fleet.everyone:
        fleet.offer(index)
    _, other = setup.begin_epoch(
        Fleet(3).states[1], 1, 1, chain_key=bytes(32), certificate=b"", sign=lambda message: message[:8]
    )
    with pytest.raises(PeerError) as refusal:
        assembly.accept_keys(fleet.server, other, at_ms=NOW_MS, verify_member=verify_member)
    assert refusal.value.code is Code.CONFLICTING_REPEAT
    fleet.make_roster()
    fleet.share(1)
    shares = fleet.rows[1]
    swapped = dataclasses.replace(
        shares, boxes=(dataclasses.replace(shares.boxes[0], nonce=bytes(12)), *shares.boxes[1:])
    )
    with pytest.raises(PeerError) as refusal:
        assembly.accept_shares(fleet.server, swapped)
    assert refusal.value.code is Code.CONFLICTING_REPEAT


def test_slower_members_choose_chacha() -> None:
    fleet = Fleet(4, trust=Trust.CURIOUS).set_up()
    assert fleet.server.prg is Prg.AES
    roster = fleet.server.sealed_roster
    slow = dataclasses.replace(roster.entries[0], aes_mb_per_s=30, chacha_mb_per_s=200)
    changed = dataclasses.replace(roster, entries=(slow, *roster.entries[1:]))
    assert dataclasses.replace(fleet.server, roster=changed).prg is Prg.CHACHA


def test_two_abandoned_rounds_end_the_key_epoch(fleet: Fleet) -> None:
    for _ in range(2):
        assert not fleet.server.is_over()
        fleet.close(fleet.open(ENCODING))
    assert fleet.server.is_over()


def test_key_epoch_ends_when_too_few_members_are_left(fleet: Fleet) -> None:
    assert not fleet.server.is_over(revoked=1)
    assert fleet.server.is_over(revoked=2)
