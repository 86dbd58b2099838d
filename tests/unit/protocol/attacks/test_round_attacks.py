"""Attacks on a masked round in pairwise mode, M4 and M5 (protocol.md section 9)."""

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
)
from fedless.protocol.secagg.ring import plan
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_cheats import ENCODING, all_reported, refused_answer, refused_round, signed
from tests.secagg_fleet import (
    NOW_MS,
    Fleet,
    client_sign,
    unit_words,
    verify_aggregator,
    verify_member,
)


@pytest.fixture(scope="module")
def ready() -> Fleet:
    return Fleet(8, slots=3).set_up()


@pytest.fixture
def fleet(ready: Fleet) -> Fleet:
    return copy.deepcopy(ready)


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
