"""Attacks on a masked round in pairwise mode (protocol.md section 9)."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from fedless.protocol import crypto
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.secagg import client, codec, server
from fedless.protocol.secagg.messages import (
    MaskedReport,
    RoundOpen,
    UnmaskRequest,
    UnmaskResponse,
    alive_signed,
    bitmap,
)
from fedless.protocol.secagg.ring import plan
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_fleet import (
    NOW_MS,
    Fleet,
    aggregator_sign,
    client_sign,
    unit_words,
    verify_aggregator,
    verify_member,
)

ENCODING = plan(n=8, dimension=8, clip=1.0, max_examples=10)


@pytest.fixture(scope="module")
def ready() -> Fleet:
    return Fleet(8, slots=3).set_up()


@pytest.fixture
def fleet(ready: Fleet) -> Fleet:
    return copy.deepcopy(ready)


def signed(fleet: Fleet, opened: RoundOpen) -> RoundOpen:
    """M4 as a cheating aggregator signs it, whatever is in it."""
    context = client.context_of(fleet.states[1].epochs[0], opened)
    return dataclasses.replace(opened, signature=aggregator_sign(opened.signed(context)))


def request_for(fleet: Fleet, opened: RoundOpen, alive: list[int]) -> UnmaskRequest:
    """M6 as a cheating aggregator signs it."""
    context = client.context_of(fleet.states[1].epochs[0], opened)
    bits = bitmap(fleet.server.members, alive)
    return UnmaskRequest(opened, bits, aggregator_sign(alive_signed(context, bits)))


def refused_round(fleet: Fleet, opened: RoundOpen, index: int = 1) -> Code:
    with pytest.raises(PeerError) as refusal:
        fleet.accept_round(index, opened)
    return refusal.value.code


def refused_answer(fleet: Fleet, request: UnmaskRequest, index: int = 1) -> Code:
    with pytest.raises(PeerError) as refusal:
        client.answer_unmask(fleet.states[index], request, verify_aggregator=verify_aggregator)
    return refusal.value.code


def all_reported(fleet: Fleet, *absent: int) -> ServerRound:
    round_ = fleet.open(ENCODING)
    for index in fleet.server.members:
        if index not in absent:
            round_ = fleet.report(round_, index, unit_words(ENCODING, index - 1))
    return round_


# -- the aggregator lies in M4


def test_slot_used_again_is_refused(fleet: Fleet) -> None:
    first = fleet.open(ENCODING).open
    fleet.accept_round(1, first)
    assert refused_round(fleet, signed(fleet, dataclasses.replace(first, round_id=999))) is Code.SLOT_USED


def test_slot_closed_by_a_later_one_is_refused_for_good(fleet: Fleet) -> None:
    round_ = all_reported(fleet)
    closed = fleet.close(round_)
    fleet.accept_round(1, fleet.open(ENCODING).open)
    assert refused_round(fleet, round_.open) is Code.SLOT_CLOSED
    assert closed.request is not None
    assert refused_answer(fleet, closed.request) is Code.SLOT_CLOSED


def test_same_model_summed_twice_is_refused(fleet: Fleet) -> None:
    """Two sums over one model with different survivors would isolate a client."""
    round_ = fleet.close(all_reported(fleet))
    fleet.answer(round_, 1)
    again = fleet.open(ENCODING, model_digest=round_.open.model_digest).open
    assert refused_round(fleet, again) is Code.MODEL_REPEATED
    fleet.accept_round(2, again)  # it has not answered: for it the first slot may never have been opened


def test_same_model_in_the_next_key_epoch_is_refused(fleet: Fleet) -> None:
    round_ = fleet.close(all_reported(fleet))
    fleet.answer(round_, 1)
    following = Fleet(8, epoch=2, states=fleet.states).set_up()
    again = following.open(ENCODING, model_digest=round_.open.model_digest).open
    assert refused_round(following, again) is Code.MODEL_REPEATED


def test_evaluation_and_training_of_one_model_are_two_sums(fleet: Fleet) -> None:
    round_ = fleet.close(all_reported(fleet))
    fleet.answer(round_, 1)
    evaluation = plan(n=8, dimension=0, clip=1.0, max_examples=10)
    fleet.accept_round(1, fleet.open(evaluation, model_digest=round_.open.model_digest).open)
    assert fleet.states[1].epochs[0].slot(1).context


def test_model_or_task_swapped_for_one_client_is_refused_by_it(fleet: Fleet) -> None:
    opened = fleet.open(ENCODING).open
    for model, task in ((crypto.sha256(b"other"), opened.task_digest), (opened.model_digest, bytes(32))):
        with pytest.raises(PeerError) as refusal:
            client.accept_round(
                fleet.states[1],
                opened,
                model_digest=model,
                task_digest=task,
                verify_aggregator=verify_aggregator,
            )
        assert refusal.value.code is Code.BAD_CONTEXT


@pytest.mark.parametrize("field", ["model_digest", "task_digest", "encoding", "prg", "round_id"])
def test_model_swapped_for_one_client_masks_do_not_cancel(fleet: Fleet, field: str) -> None:
    """The aggregator signs two M4 for one slot; member 8 gets the other one. All it can sum is noise."""
    values: dict[str, object] = {
        "model_digest": crypto.sha256(b"swapped"),
        "task_digest": crypto.sha256(b"swapped"),
        "encoding": dataclasses.replace(ENCODING, max_examples=11),
        "prg": crypto.Prg.CHACHA,
        "round_id": 4711,
    }
    round_ = all_reported(fleet, 8)
    other = signed(fleet, dataclasses.replace(round_.open, **{field: values[field]}))  # type: ignore[arg-type]
    fleet.accept_round(8, other)
    head = fleet.mask(8, other, unit_words(ENCODING, 7))
    with pytest.raises(PeerError) as refusal:  # an honest aggregator would notice
        server.accept_report(fleet.server, round_, head, at_ms=NOW_MS, verify_member=verify_member)
    assert refusal.value.code is Code.BAD_CONTEXT
    cheat = dataclasses.replace(round_, reports=(*round_.reports, server.Reported(8, head.sha256)))
    cheat = fleet.close(cheat)
    for index in range(1, 8):
        cheat = fleet.respond(cheat, index)
    _, recovery = server.recover(fleet.server, cheat)
    total = fleet.total(cheat)
    server.remove_masks(cheat, recovery, total)
    assert not np.any(total[:8] == 1)


def test_round_that_the_aggregator_did_not_sign_is_refused(fleet: Fleet) -> None:
    opened = fleet.open(ENCODING).open
    for changed in (
        dataclasses.replace(opened, min_alive=8),
        dataclasses.replace(opened, deadline_at_ms=1),
        dataclasses.replace(opened, model_version=9),
        dataclasses.replace(opened, signature=bytes(64)),
    ):
        assert refused_round(fleet, changed) is Code.BAD_SIGNATURE


@pytest.mark.parametrize("min_alive", [0, 1, 5, 9])
def test_min_alive_below_the_threshold_is_refused(fleet: Fleet, min_alive: int) -> None:
    opened = signed(fleet, fleet.opening(ENCODING, min_alive=min_alive))
    assert refused_round(fleet, opened) is Code.BAD_THRESHOLD
    with pytest.raises(PeerError) as refusal:
        fleet.open(ENCODING, min_alive=min_alive)
    assert refusal.value.code is Code.BAD_THRESHOLD


def test_overflow_of_the_ring_is_refused_by_both_sides(fleet: Fleet) -> None:
    greedy = dataclasses.replace(ENCODING, scale=ENCODING.scale * 2)
    assert refused_round(fleet, signed(fleet, fleet.opening(greedy))) is Code.RING_OVERFLOW
    with pytest.raises(PeerError) as refusal:
        fleet.open(greedy)
    assert refusal.value.code is Code.RING_OVERFLOW


def test_unknown_epoch_and_slot_are_refused(fleet: Fleet) -> None:
    assert refused_round(fleet, signed(fleet, fleet.opening(ENCODING, epoch=2))) is Code.EPOCH_STALE
    assert refused_round(fleet, signed(fleet, fleet.opening(ENCODING, slot=3))) is Code.OUT_OF_RANGE
    with pytest.raises(PeerError) as refusal:
        fleet.open(ENCODING, slot=2)
    assert refusal.value.code is Code.SLOT_USED


# -- a client lies in M5


def test_report_under_another_clients_id_is_refused(fleet: Fleet) -> None:
    round_ = fleet.open(ENCODING)
    fleet.accept_round(1, round_.open)
    head = fleet.mask(1, round_.open, unit_words(ENCODING, 0))
    stolen = dataclasses.replace(head, index=2)
    for changed, code in (
        (stolen, Code.BAD_SIGNATURE),
        (dataclasses.replace(stolen, signature=client_sign(1)(stolen.signed)), Code.BAD_SIGNATURE),
        (dataclasses.replace(head, index=9), Code.NOT_IN_COHORT),
    ):
        assert refused_report(fleet, round_, changed) is code


def refused_report(fleet: Fleet, round_: ServerRound, head: MaskedReport) -> Code:
    with pytest.raises(PeerError) as refusal:
        server.accept_report(fleet.server, round_, head, at_ms=NOW_MS, verify_member=verify_member)
    return refusal.value.code


def test_report_twice_is_refused_and_the_first_one_counts(fleet: Fleet) -> None:
    round_ = fleet.open(ENCODING)
    round_ = fleet.report(round_, 1, unit_words(ENCODING, 0))
    second = dataclasses.replace(fleet.spool[1][0], sha256=bytes(32))
    second = dataclasses.replace(second, signature=client_sign(1)(second.signed))
    assert refused_report(fleet, round_, second) is Code.ALREADY_REPORTED


def test_truncated_over_long_and_corrupted_reports_are_refused(fleet: Fleet) -> None:
    round_ = fleet.open(ENCODING)
    fleet.accept_round(1, round_.open)
    head = fleet.mask(1, round_.open, unit_words(ENCODING, 0))
    for length in (0, head.length_bytes - 4, head.length_bytes + 4):
        assert refused_report(fleet, round_, dataclasses.replace(head, length_bytes=length)) is (
            Code.WRONG_LENGTH
        )
    corrupted = dataclasses.replace(head, sha256=crypto.sha256(b"other bytes"))
    assert refused_report(fleet, round_, corrupted) is Code.BAD_SIGNATURE


def test_report_of_another_round_is_refused(fleet: Fleet) -> None:
    first = fleet.open(ENCODING)
    fleet.accept_round(1, first.open)
    head = fleet.mask(1, first.open, unit_words(ENCODING, 0))
    assert refused_report(fleet, fleet.open(ENCODING), head) is Code.BAD_CONTEXT


def test_report_re_masked_after_a_crash_is_refused_by_the_client_itself(fleet: Fleet) -> None:
    """Two masked vectors of one slot would differ by exactly the difference of the updates."""
    opened = fleet.open(ENCODING).open
    fleet.accept_round(1, opened)
    fleet.mask(1, opened, unit_words(ENCODING, 0))
    for state in (fleet.states[1], codec.loads(type(fleet.states[1]), codec.dumps(fleet.states[1]))):
        with pytest.raises(LocalError) as error:
            client.mask_report(state, opened, unit_words(ENCODING, 1), sign=client_sign(1))
        assert error.value.code is Code.ALREADY_REPORTED
    fleet.accept_round(1, opened)  # hearing M4 again is no new permission
    with pytest.raises(LocalError):
        fleet.mask(1, opened, unit_words(ENCODING, 1))


def test_report_after_the_shares_were_answered_is_refused_by_the_client_itself(fleet: Fleet) -> None:
    round_ = fleet.close(all_reported(fleet, 8))
    fleet.accept_round(8, round_.open)
    fleet.answer(round_, 8)
    with pytest.raises(LocalError) as error:
        fleet.mask(8, round_.open, unit_words(ENCODING, 7))
    assert error.value.code is Code.ALREADY_REPORTED


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
