"""Pairwise mode, message by message, between honest parties: exact sums, dropouts, restarts, repeats."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from fedless.protocol.crypto import Prg
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.prg import Words, expand
from fedless.protocol.secagg import assembly, client, server, setup
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.messages import bitmap, chosen
from fedless.protocol.secagg.ring import Extra, plan
from fedless.protocol.secagg.shamir import SHARE_BYTES
from fedless.protocol.secagg.state import leave, mark
from tests import secagg_fleet
from tests.secagg_fleet import (
    NOW_MS,
    Fleet,
    aggregator_sign,
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


def reports(fleet: Fleet, *absent: int) -> dict[int, Words]:
    return {i: unit_words(ENCODING, i - 1) for i in fleet.server.members if i not in absent}


def test_eight_devices_with_two_dropouts_commit(fleet: Fleet) -> None:
    ended, total, decoded = fleet.run(reports(fleet, 3, 7), [1, 2, 4, 5, 6, 8], ENCODING)
    assert fleet.server.sealed_roster.threshold == 6
    assert total.tolist() == [1, 1, 0, 1, 1, 1, 0, 1, 6]
    assert ended.result is not None
    assert ended.result.reason == ""
    assert ended.result.survivors == 6
    assert decoded.mean.shape == (8,)


def test_eight_devices_with_three_dropouts_are_abandoned_by_name(fleet: Fleet) -> None:
    round_ = fleet.open(ENCODING)
    for index, words in reports(fleet, 3, 7, 8).items():
        round_ = fleet.report(round_, index, words)
    round_ = fleet.close(round_)
    assert round_.request is None
    assert round_.result is not None
    assert round_.result.reason == Code.TOO_FEW.value
    assert fleet.server.abandoned_in_a_row == 1
    for index in fleet.server.members:
        state = client.accept_result(fleet.states[index], round_.result, verify_aggregator=verify_aggregator)
        fleet.keep(index, state)
        assert state.spent == ()  # no M6 was signed, so the next slot may retry the same model
    model = round_.open.model_digest
    retry = fleet.open(ENCODING, model_digest=model)
    for index, words in reports(fleet).items():
        retry = fleet.report(retry, index, words)
    assert len(retry.reports) == 8


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("prg", list(Prg))
def test_masked_vectors_hide_and_their_sum_is_exact(fleet: Fleet, bits: int, prg: Prg) -> None:
    encoding = plan(n=8, dimension=70_000, bits=bits, clip=1.0, max_examples=10, extras=(Extra("loss", 1.0),))
    round_ = fleet.open(encoding, prg=prg)
    expected = np.zeros(encoding.words, dtype=np.uint64)
    for index in fleet.server.members[:7]:
        words = expand(Prg.AES, bytes([index] * 32), encoding.words, bits)
        words //= 16 if bits == 16 else 64
        words[:70_000] -= words[0] // 2  # negative numbers too
        words[70_000:] %= encoding.weight_scale
        expected += words
        round_ = fleet.report(round_, index, words)
        assert not np.any(fleet.spool[index][1][:50] == words[:50]) or bits == 16
    round_ = fleet.close(round_)
    for index in fleet.server.members[1:]:
        round_ = fleet.respond(round_, index)
    recovered, recovery = server.recover(fleet.server, round_)
    total = fleet.total(round_)
    server.remove_masks(recovered, recovery, total)
    assert np.array_equal(total, expected.astype(total.dtype))


def test_holder_that_slept_through_the_round_answers_too(fleet: Fleet) -> None:
    """Members 7 and 8 never saw M4; they answer M6 from what it carries."""
    ended, total, _ = fleet.run(reports(fleet, 7, 8), [3, 4, 5, 6, 7, 8], ENCODING)
    assert total[:8].tolist() == [1] * 6 + [0, 0]
    assert ended.suspects == ()


def test_member_without_shares_is_not_in_e_and_the_rest_go_on() -> None:
    fleet = Fleet(8).set_up(without_shares=[4])
    assert fleet.server.members == (1, 2, 3, 5, 6, 7, 8)
    _, total, _ = fleet.run(reports(fleet, 8), [1, 2, 3, 5, 6, 8], ENCODING)
    assert total[:8].tolist() == [1, 1, 1, 0, 1, 1, 1, 0]


def test_three_slots_one_after_another_and_then_the_epoch_is_over(fleet: Fleet) -> None:
    for absent in (1, 2, 3):
        assert not fleet.server.is_over()
        _, total, _ = fleet.run(reports(fleet, absent), [i for i in range(1, 9) if i != absent], ENCODING)
        assert total[absent - 1] == 0
        assert total[-1] == 7
    assert fleet.server.is_over()
    with pytest.raises(PeerError) as refusal:
        fleet.open(ENCODING)
    assert refusal.value.code is Code.WRONG_STATE


def test_next_epoch_is_set_up_while_the_last_one_still_serves(fleet: Fleet) -> None:
    following = Fleet(8, slots=2, epoch=2, states=fleet.states).set_up()
    _, total, _ = fleet.run(reports(fleet, 1), range(2, 9), ENCODING)
    assert total[-1] == 7
    following.states = fleet.states
    assert [e.epoch for e in following.states[2].epochs] == [1, 2]
    _, total, _ = following.run(reports(fleet, 2), [1, *range(3, 9)], ENCODING)
    assert total[1] == 0
    assert [e.epoch for e in following.states[1].epochs] == [2]


def test_repeated_identical_messages_get_the_same_answers() -> None:
    fleet = Fleet(4, trust=Trust.CURIOUS)
    for index in fleet.everyone:
        fleet.offer(index)
        before = fleet.server
        fleet.offer(index)
        assert fleet.server == before
    fleet.make_roster()
    for index in fleet.everyone:
        fleet.share(index)
        first = fleet.rows[index]
        fleet.share(index)
        assert fleet.rows[index] == first
    fleet.activate()
    for index in fleet.everyone:
        fleet.collect(index)
        state = fleet.states[index]
        fleet.collect(index)
        assert fleet.states[index] == state
    encoding = plan(n=4, dimension=4, clip=1.0, max_examples=10)
    round_ = fleet.open(encoding)
    for index in (1, 2, 3):
        round_ = fleet.report(round_, index, unit_words(encoding, index - 1))
        fleet.accept_round(index, round_.open)
        head = fleet.spool[index][0]
        again = server.accept_report(fleet.server, round_, head, at_ms=NOW_MS, verify_member=verify_member)
        assert again == round_
    round_ = fleet.close(round_)
    assert fleet.close(round_) == round_
    for index in fleet.everyone:
        assert fleet.answer(round_, index) == fleet.answer(round_, index)
        round_ = fleet.respond(round_, index)
        assert fleet.respond(round_, index) == round_
    assert fleet.unmask(round_)[1].tolist() == [1, 1, 1, 0, 3]


def test_messages_at_the_wrong_time_are_refused(fleet: Fleet) -> None:
    fresh = Fleet(3, trust=Trust.CURIOUS)
    for step in (fresh.activate, lambda: fresh.share(1), lambda: fresh.collect(1)):
        with pytest.raises(PeerError):
            step()
    for index in fresh.everyone:
        fresh.offer(index)
    with pytest.raises(PeerError) as refusal:
        assembly.make_roster(
            fresh.server,
            minimum=4,
            graph_seed=bytes(32),
            at_ms=0,
            ends_at_ms=1,
            verify_member=verify_member,
            sign=aggregator_sign,
        )
    assert refusal.value.code is Code.TOO_FEW
    late = dataclasses.replace(fresh.server.offers[0], client_id="late")
    with pytest.raises(PeerError) as refusal:
        assembly.accept_keys(fleet.server, late, at_ms=0, verify_member=verify_member)
    assert refusal.value.code is Code.WRONG_STATE
    round_ = fleet.open(ENCODING)
    fleet.accept_round(1, round_.open)
    head = fleet.mask(1, round_.open, unit_words(ENCODING, 0))
    closed = fleet.close(round_)
    with pytest.raises(PeerError) as refusal:
        server.accept_report(fleet.server, closed, head, at_ms=NOW_MS, verify_member=verify_member)
    assert refusal.value.code is Code.ROUND_CLOSED


def test_what_is_erased_is_gone(fleet: Fleet) -> None:
    before = fleet.states[1].epochs[0]
    assert before.channel_private == b""
    assert before.roster is None
    assert before.shares is None
    chain_0 = before.chain_key
    round_ = fleet.open(ENCODING)
    for index, words in reports(fleet).items():
        round_ = fleet.report(round_, index, words)
    reported = fleet.states[1].epochs[0]
    assert reported.chain_key != chain_0
    assert reported.chain_slot == 1
    round_ = fleet.close(round_)
    fleet.answer(round_, 1)
    answered = fleet.states[1].epochs[0].slot(0)
    assert (answered.mask_shares, answered.self_shares) == (b"", b"")
    assert len(answered.answer) == SHARE_BYTES * 8
    for index in range(2, 9):
        round_ = fleet.respond(round_, index)
    ended, _, _ = fleet.unmask(round_)
    assert ended.result is not None
    state = client.accept_result(fleet.states[1], ended.result, verify_aggregator=verify_aggregator)
    assert [slot.number for slot in state.epochs[0].slots] == [1, 2]
    assert len(state.spent) == 1
    assert client.accept_result(state, ended.result, verify_aggregator=verify_aggregator) == state


def test_skipped_slots_are_erased_with_their_keys(fleet: Fleet) -> None:
    fleet.open(ENCODING)
    fleet.open(ENCODING)
    third = fleet.open(ENCODING)
    fleet.accept_round(1, third.open)
    epoch = fleet.states[1].epochs[0]
    assert [slot.number for slot in epoch.slots] == [2]
    assert (epoch.chain_slot, epoch.closed_below) == (2, 2)


def test_left_out_reporter_still_answers_and_knows(fleet: Fleet) -> None:
    """Its report arrived too late: allowed, but logged."""
    round_ = fleet.open(ENCODING)
    for index, words in reports(fleet, 8).items():
        round_ = fleet.report(round_, index, words)
    fleet.accept_round(8, round_.open)
    fleet.mask(8, round_.open, unit_words(ENCODING, 7))
    round_ = fleet.close(round_)
    assert round_.request is not None
    assert client.left_out(fleet.states[8], round_.request)
    assert not client.left_out(fleet.states[1], round_.request)
    for index in (3, 4, 5, 6, 7, 8):
        round_ = fleet.respond(round_, index)
    assert fleet.unmask(round_)[1][:8].tolist() == [1] * 7 + [0]


def test_late_report_does_not_open_with_the_revealed_shares(fleet: Fleet) -> None:
    """The sum gives the absent member's pair masks away, but its self mask still covers a late report."""
    round_ = fleet.open(ENCODING)
    for index, words in reports(fleet, 8).items():
        round_ = fleet.report(round_, index, words)
    fleet.accept_round(8, round_.open)
    secret = unit_words(ENCODING, 7)
    fleet.mask(8, round_.open, secret)
    round_ = fleet.close(round_)
    for index in range(1, 8):
        round_ = fleet.respond(round_, index)
    _, recovery = server.recover(fleet.server, round_)
    bare = fleet.spool[8][1].copy()
    assert len(recovery.plus) + len(recovery.minus) == 7 + 7
    for seed in recovery.minus[7:]:
        bare -= expand(round_.open.prg, seed, len(bare), 32)
    for seed in recovery.plus:
        bare += expand(round_.open.prg, seed, len(bare), 32)
    assert not np.any(bare == secret)


def test_client_that_leaves_keeps_nothing_and_cannot_come_back(fleet: Fleet) -> None:
    state = leave(fleet.states[1], 1)
    assert state.epochs == ()
    with pytest.raises(PeerError) as refusal:
        setup.begin_epoch(state, 1, 3, chain_key=bytes(32), certificate=b"", sign=lambda m: m)
    assert refusal.value.code is Code.EPOCH_STALE
    assert mark(state).epoch == 1


def test_misuse_by_the_driver_is_a_local_error(fleet: Fleet) -> None:
    round_ = fleet.open(ENCODING)
    with pytest.raises(LocalError) as error:
        fleet.mask(1, round_.open, unit_words(ENCODING, 0))
    assert error.value.code is Code.WRONG_STATE
    fleet.accept_round(1, round_.open)
    for words in (np.zeros(8, np.uint32), np.zeros(9, np.uint16)):
        with pytest.raises(LocalError) as error:
            fleet.mask(1, round_.open, words)
        assert error.value.code is Code.WRONG_LENGTH


def test_bitmaps_name_members_in_order() -> None:
    members = (2, 3, 5, 7, 11, 13, 17, 19, 23)
    assert bitmap(members, [2, 19, 23]) == bytes([0b10000001, 1])
    assert chosen(members, bytes([0b10000001, 1])) == (2, 19, 23)
    for wrong in (b"", b"\x01", b"\x00\x02", b"\x00\x00\x00"):
        with pytest.raises(PeerError) as refusal:
            chosen(members, wrong)
        assert refusal.value.code is Code.BAD_BITMAP


def test_server_restart_between_any_two_messages_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stored` puts every state through its serialised form; without it the same messages are sent."""
    restarted = Fleet(8).set_up(without_shares=[3])
    words = {i: unit_words(restarted.opening().encoding, 1) for i in (1, 2, 4, 5, 6, 7)}
    first = restarted.run(words, (1, 2, 4, 5, 6, 8))
    monkeypatch.setattr(secagg_fleet, "stored", lambda value: value)
    steady = Fleet(8).set_up(without_shares=[3])
    second = steady.run(words, (1, 2, 4, 5, 6, 8))
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])
    assert (restarted.server, restarted.states, restarted.rows) == (steady.server, steady.states, steady.rows)
