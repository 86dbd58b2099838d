"""Attacks on the opening of a sum in pairwise mode, M6 to M8 (protocol.md section 9)."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import client, server
from fedless.protocol.secagg.messages import (
    UnmaskRequest,
    UnmaskResponse,
    alive_signed,
    bitmap,
)
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_cheats import ENCODING, all_reported, refused_answer, request_for, signed
from tests.secagg_fleet import (
    Fleet,
    aggregator_sign,
    unit_words,
    verify_aggregator,
)


@pytest.fixture(scope="module")
def ready() -> Fleet:
    return Fleet(8, slots=3).set_up()


@pytest.fixture
def fleet(ready: Fleet) -> Fleet:
    return copy.deepcopy(ready)


# -- the aggregator lies in M6


def test_own_bit_set_by_the_aggregator_for_a_member_that_did_not_report(fleet: Fleet) -> None:
    round_ = all_reported(fleet, 8)
    request = request_for(fleet, round_.open, [1, 2, 3, 4, 5, 6, 7, 8])
    assert refused_answer(fleet, request, 8) is Code.BAD_BITMAP
    fleet.accept_round(8, round_.open)
    assert refused_answer(fleet, request, 8) is Code.BAD_BITMAP


def test_both_secrets_of_one_peer_asked_with_two_bitmaps(fleet: Fleet) -> None:
    round_ = fleet.close(all_reported(fleet))
    fleet.answer(round_, 1)
    other = request_for(fleet, round_.open, [1, 2, 3, 4, 5, 6, 7])
    assert refused_answer(fleet, other) is Code.TWO_BITMAPS
    kept = fleet.states[1].epochs[0].slot(0)
    assert (kept.mask_shares, kept.self_shares) == (b"", b"")


def test_two_signed_bitmaps_in_request_and_result_are_proof_of_cheating(fleet: Fleet) -> None:
    round_ = fleet.close(all_reported(fleet))
    for index in range(1, 8):
        round_ = fleet.respond(round_, index)
    ended, _, _ = fleet.unmask(round_)
    assert ended.result is not None
    lie = dataclasses.replace(ended.result, alive=bitmap(fleet.server.members, range(1, 8)), survivors=7)
    lie = dataclasses.replace(lie, signature=aggregator_sign(lie.signed))
    with pytest.raises(PeerError) as refusal:
        client.accept_result(fleet.states[1], lie, verify_aggregator=verify_aggregator)
    assert refusal.value.code is Code.TWO_BITMAPS


def test_bitmap_with_fewer_than_min_alive_is_refused(fleet: Fleet) -> None:
    opened = all_reported(fleet).open
    assert refused_answer(fleet, request_for(fleet, opened, [1, 2, 3, 4, 5])) is Code.BAD_BITMAP


def test_bitmap_of_wrong_length_is_refused(fleet: Fleet) -> None:
    opened = all_reported(fleet).open
    context = client.context_of(fleet.states[1].epochs[0], opened)
    for bits in (b"", b"\xff\x01", b"\xff\x00"):
        request = UnmaskRequest(opened, bits, aggregator_sign(alive_signed(context, bits)))
        assert refused_answer(fleet, request) is Code.BAD_BITMAP


def test_unmask_request_that_the_aggregator_did_not_sign_is_refused(fleet: Fleet) -> None:
    round_ = fleet.close(all_reported(fleet))
    assert round_.request is not None
    changed = dataclasses.replace(round_.request, alive=b"\x7f")
    assert refused_answer(fleet, changed) is Code.BAD_SIGNATURE
    assert refused_answer(fleet, dataclasses.replace(changed, signature=bytes(64))) is Code.BAD_SIGNATURE


def test_unmask_request_with_another_round_in_the_slot_is_refused(fleet: Fleet) -> None:
    opened = all_reported(fleet).open
    other = signed(fleet, dataclasses.replace(opened, round_id=4711))
    assert refused_answer(fleet, request_for(fleet, other, list(range(1, 9)))) is Code.SLOT_USED


def test_unmask_request_with_a_low_min_alive_is_refused_by_a_sleeping_holder(fleet: Fleet) -> None:
    opened = signed(fleet, fleet.opening(ENCODING, min_alive=2))
    assert refused_answer(fleet, request_for(fleet, opened, [2, 3])) is Code.BAD_THRESHOLD


# -- a holder lies in M7


def answers(fleet: Fleet, round_: ServerRound, holders: range) -> ServerRound:
    for index in holders:
        round_ = fleet.respond(round_, index)
    return round_


def spoiled(round_: ServerRound, index: int) -> ServerRound:
    """Every share of this holder changed in its last byte."""

    def change(response: UnmaskResponse) -> UnmaskResponse:
        shares = bytearray(response.shares)
        shares[32::33] = bytes(byte ^ 1 for byte in shares[32::33])
        return dataclasses.replace(response, shares=bytes(shares))

    responses = tuple(change(r) if r.index == index else r for r in round_.responses)
    return dataclasses.replace(round_, responses=responses)


@pytest.mark.parametrize("liars", [(1,), (4,), (8,), (2, 5)])
def test_wrong_share_is_located_and_survived(fleet: Fleet, liars: tuple[int, ...]) -> None:
    round_ = answers(fleet, fleet.close(all_reported(fleet, 3)), range(1, 9))
    for liar in liars:
        round_ = spoiled(round_, liar)
    ended, total, _ = fleet.unmask(round_)
    assert total[:8].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert set(ended.suspects) <= set(liars)
    if 8 not in liars:  # the last of eight is not needed when six are enough
        assert ended.suspects == liars


def test_wrong_share_without_a_spare_holder_abandons_the_round(fleet: Fleet) -> None:
    round_ = spoiled(answers(fleet, fleet.close(all_reported(fleet)), range(1, 7)), 2)
    with pytest.raises(PeerError) as refusal:
        server.recover(fleet.server, round_)
    assert refusal.value.code is Code.BAD_SHARE
    _, ended = server.abandon(fleet.server, round_, Code.BAD_SHARE, sign=aggregator_sign)
    assert ended.result is not None
    assert (ended.result.reason, ended.result.sum_digest) == (Code.BAD_SHARE.value, b"")


def test_fewer_answers_than_the_threshold_open_nothing(fleet: Fleet) -> None:
    round_ = answers(fleet, fleet.close(all_reported(fleet)), range(1, 6))
    assert not server.can_recover(fleet.server, round_)
    with pytest.raises(PeerError) as refusal:
        server.recover(fleet.server, round_)
    assert refusal.value.code is Code.TOO_FEW


def test_malformed_answers_are_refused(fleet: Fleet) -> None:
    open_ = all_reported(fleet)
    closed = fleet.close(open_)
    good = fleet.answer(closed, 1)
    for changed, code in (
        (dataclasses.replace(good, shares=good.shares[:-1]), Code.WRONG_LENGTH),
        (dataclasses.replace(good, shares=good.shares + b"\x00"), Code.WRONG_LENGTH),
        (dataclasses.replace(good, round_id=5), Code.UNKNOWN_ROUND),
        (dataclasses.replace(good, index=9), Code.NOT_IN_COHORT),
    ):
        with pytest.raises(PeerError) as refusal:
            server.accept_response(fleet.server, closed, changed)
        assert refusal.value.code is code
    with pytest.raises(PeerError) as refusal:
        server.accept_response(fleet.server, open_, good)
    assert refusal.value.code is Code.WRONG_STATE
    answered = server.accept_response(fleet.server, closed, good)
    with pytest.raises(PeerError) as refusal:
        server.accept_response(
            fleet.server, answered, dataclasses.replace(good, shares=bytes(len(good.shares)))
        )
    assert refusal.value.code is Code.CONFLICTING_REPEAT


# -- the aggregator lies in M8


def test_result_that_is_forged_or_of_another_round_is_refused(fleet: Fleet) -> None:
    round_ = answers(fleet, fleet.close(all_reported(fleet)), range(1, 8))
    ended, _, _ = fleet.unmask(round_)
    assert ended.result is not None
    forged = dataclasses.replace(ended.result, survivors=3)
    other = dataclasses.replace(ended.result, context=bytes(32))
    other = dataclasses.replace(other, signature=aggregator_sign(other.signed))
    for result, code in ((forged, Code.BAD_SIGNATURE), (other, Code.BAD_CONTEXT)):
        with pytest.raises(PeerError) as refusal:
            client.accept_result(fleet.states[1], result, verify_aggregator=verify_aggregator)
        assert refusal.value.code is code


def test_sum_that_does_not_fit_its_survivors_is_not_committed(fleet: Fleet) -> None:
    """A member that breaks the encoding's bounds is noticed where the sum leaves them."""
    greedy = np.full(9, 2**31 - 1, dtype=np.uint32)
    round_ = fleet.open(ENCODING)
    for index in range(1, 8):
        round_ = fleet.report(round_, index, greedy if index == 1 else unit_words(ENCODING, index))
    round_ = answers(fleet, fleet.close(round_), range(1, 7))
    with pytest.raises(PeerError) as refusal:
        fleet.unmask(round_)
    assert refusal.value.code is Code.OUT_OF_RANGE
