"""Attacks on helper mode, each through the calls that an attacker would make (protocol.md section 9)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.link import Answer
from aggregator.store import helper_rounds
from fedless.helper.closing import Demands
from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Encoding, ReportHeader
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.helper import HelperRules, RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperReport
from tests.simulation.helper_world import CLIENTS, HelperWorld, helper_task, mean_of
from tests.simulation.world import refusal_of


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HelperWorld]:
    made = HelperWorld(tmp_path)
    yield made
    await made.close()


async def committed(world: HelperWorld) -> tuple[str, int, list[HelperReport]]:
    """A run of one committed round: its id, the round's, the heads."""
    run_id = await world.start(helper_task())
    cohort = await world.cohort(CLIENTS)
    heads = [await world.take_part(client_id) for client_id in cohort[:8]]
    info = await world.ended(run_id)
    assert info.state == "finished"
    return run_id, info.rounds[0].round_id, heads


async def abandoned(world: HelperWorld) -> str:
    """Why a round of eight reports was abandoned."""
    run_id = await world.start(helper_task())
    for client_id in (await world.cohort(CLIENTS))[:8]:
        await world.take_part(client_id)
    reason: str = (await world.phase(run_id, "abandoned")).reason
    assert not any(await world.weights(run_id)), "the model is still the initial one"
    return reason


async def test_swapped_helper_key_is_refused_by_the_client(world: HelperWorld) -> None:
    world.swap_key()
    await world.start(helper_task())
    client_id, *_ = await world.cohort(CLIENTS)
    assert await refusal_of(world.opened(client_id)) is Code.HELPER_KEY


async def test_swapped_helper_key_is_refused_by_the_helper(world: HelperWorld) -> None:
    """Even if every client had pinned the wrong key."""
    world.swap_key()
    world.policy = replace(world.policy, helper_key_digest=crypto.sha256(world.calls.party.key))
    assert (await abandoned(world)).startswith("helper_key: ")


async def test_same_round_closed_twice_with_different_sets_is_refused(world: HelperWorld) -> None:
    _, round_id, heads = await committed(world)
    opened = await world.database.run(lambda c: helper_rounds.load_opened(c, round_id))
    again = CloseRequest(opened, tuple(heads))
    assert not isinstance(await world.calls.close(again, 1000), RefusedReports)
    world.calls.helper = replace(world.calls.helper, demands=Demands(HelperRules(minimum=7)))
    fewer = CloseRequest(opened, tuple(heads[:7]))
    assert await refusal_of(world.calls.close(fewer, 1000)) is Code.CONFLICTING_REPEAT


async def test_set_below_the_helpers_minimum_is_refused(world: HelperWorld) -> None:
    world.calls.helper = replace(world.calls.helper, demands=Demands(HelperRules(minimum=9)))
    assert await abandoned(world) == "too_few: Expected 9 reports or more, found 8."


async def test_seed_twice_in_one_set_counts_neither(world: HelperWorld) -> None:
    run_id = await world.start(helper_task(size=10))
    cohort = await world.cohort(CLIENTS)
    for client_id in cohort:
        await world.take_part(client_id, seed=bytes(32) if client_id in cohort[:2] else b"")
    info = await world.ended(run_id)
    assert await world.mean(run_id) == mean_of(cohort[2:])
    assert info.rounds[0].losses == {Code.SEED_REPEATED.value: 2}


async def test_seed_of_an_earlier_round_is_not_counted(world: HelperWorld) -> None:
    run_id = await world.start(helper_task(size=10, rounds=2))
    cohort = await world.cohort(CLIENTS)
    seeds = {cohort[0]: bytes(32)}
    for nth in (1, 2):
        for client_id in cohort:
            await world.take_part(client_id, nth, seed=seeds.get(client_id, b""))
    info = await world.ended(run_id)
    assert info.state == "finished"
    assert [round_.losses for round_ in info.rounds] == [{}, {Code.SEED_REPEATED.value: 1}]


async def test_second_sum_over_one_model_is_refused(world: HelperWorld) -> None:
    """The answer was given and lost for good: nobody gets a second sum that differs by a client."""
    world.calls.answers_lost = 10_000
    run_id = await world.start(helper_task())
    cohort = await world.cohort(CLIENTS)
    for client_id in cohort[:8]:
        await world.take_part(client_id)

    async def woken_again() -> bool:
        return all(len(world.waker.tickets(client_id)) == 2 for client_id in cohort)

    await world.pass_time_until(woken_again)
    world.calls.answers_lost = 0
    for client_id in cohort[1:9]:
        await world.take_part(client_id, 2)
    info = await world.ended_in_time(run_id)
    assert info.state == "failed"
    assert info.rounds[1].reason == (
        "too_few: 1 reports of at least 8; the helper refused: model_repeated 7."
    )


@pytest.mark.parametrize(
    ("forged", "code"),
    [
        (lambda head: replace(head, client_id="client-0"), Code.NOT_IN_COHORT),
        (lambda head: replace(head, signature=bytes(70)), Code.BAD_SIGNATURE),
        (lambda head: replace(head, context=bytes(32)), Code.BAD_CONTEXT),
        (lambda head: replace(head, envelope=head.envelope[:-1]), Code.MALFORMED),
        (lambda head: replace(head, envelope=bytes(80)), Code.BAD_SIGNATURE),
        (lambda head: replace(head, certificate=b"none"), Code.FOREIGN_CERTIFICATE),
    ],
)
async def test_forged_head_is_refused_and_the_honest_one_still_counts(
    world: HelperWorld, forged: Callable[[HelperReport], HelperReport], code: Code
) -> None:
    await world.start(helper_task())
    client_id = (await world.cohort(CLIENTS))[3]
    opened = await world.opened(client_id)
    head, words = world.mask(client_id, opened)
    assert await refusal_of(world.send_masked(client_id, forged(head), words, opened.round_id)) is code
    await world.send_masked(client_id, head, words, opened.round_id)


async def test_report_under_another_clients_certificate_is_refused(world: HelperWorld) -> None:
    await world.start(helper_task())
    one, other, *_ = await world.cohort(CLIENTS)
    opened = await world.opened(one)
    head, words = world.mask(other, opened)
    stolen = replace(head, client_id=one)
    assert await refusal_of(world.send_masked(one, stolen, words, opened.round_id)) is Code.NOT_IN_COHORT


async def test_report_of_another_client_under_ones_own_name_is_refused(world: HelperWorld) -> None:
    await world.start(helper_task())
    one, other, *_ = await world.cohort(CLIENTS)
    opened = await world.opened(one)
    head, words = world.mask(other, opened)
    assert await refusal_of(world.send_masked(one, head, words, opened.round_id)) is Code.NOT_IN_COHORT


async def test_bytes_other_than_the_signed_ones_are_refused(world: HelperWorld) -> None:
    await world.start(helper_task())
    client_id, *_ = await world.cohort(CLIENTS)
    opened = await world.opened(client_id)
    head, words = world.mask(client_id, opened)
    others = crypto.sha256(bytes(words.nbytes))
    header = ReportHeader(opened.round_id, Encoding.RING32, words.nbytes, others, masked=codec.dumps(head))
    assert await refusal_of(world.coordinator.begin_report(client_id, header)) is Code.WRONG_DIGEST


async def test_report_that_tells_its_example_count_is_refused(world: HelperWorld) -> None:
    await world.start(helper_task())
    client_id, *_ = await world.cohort(CLIENTS)
    opened = await world.opened(client_id)
    head, words = world.mask(client_id, opened)
    header = ReportHeader(
        opened.round_id, Encoding.RING32, words.nbytes, head.sha256, examples=10, masked=codec.dumps(head)
    )
    assert await refusal_of(world.coordinator.begin_report(client_id, header)) is Code.MALFORMED


def with_other_words(answer: Answer) -> Answer:
    assert not isinstance(answer, RefusedReports)
    head, words = answer
    words[0] += 1
    return head, words


def with_other_set(answer: Answer) -> Answer:
    assert not isinstance(answer, RefusedReports)
    return replace(answer[0], set_digest=bytes(32)), answer[1]


def signed_by_another(answer: Answer) -> Answer:
    assert not isinstance(answer, RefusedReports)
    return replace(answer[0], signature=crypto.ecdsa_sign(crypto.p256_private(7), answer[0].signed)), answer[
        1
    ]


def refusing_strangers(_answer: Answer) -> Answer:
    return RefusedReports({"nobody": Code.CERTIFICATE_REVOKED})


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (with_other_words, Code.WRONG_DIGEST),
        (with_other_set, Code.BAD_CONTEXT),
        (signed_by_another, Code.BAD_SIGNATURE),
        (refusing_strangers, Code.MALFORMED),
    ],
)
async def test_lying_helper_abandons_the_round_by_name(world: HelperWorld, lie: Any, code: Code) -> None:
    world.calls.lie = lie
    assert (await abandoned(world)).startswith(f"{code.value}: ")


async def test_words_that_the_masks_do_not_fit_are_out_of_range(world: HelperWorld) -> None:
    """A client that signs one vector's digest and masks with another seed than it seals spoils the sum, visibly."""
    run_id = await world.start(helper_task())
    cohort = (await world.cohort(CLIENTS))[:8]
    opened = await world.opened(cohort[0])
    head, words = world.mask(cohort[0], opened)
    words[:] = 2**31 - 1
    own = world.certified[cohort[0]]
    changed = replace(head, sha256=crypto.sha256(words.tobytes()))
    changed = replace(changed, signature=own.sign(changed.signed))
    await world.send_masked(cohort[0], changed, words, opened.round_id)
    for client_id in cohort[1:]:
        await world.take_part(client_id)
    round_ = await world.phase(run_id, "abandoned")
    assert round_.reason.startswith("out_of_range: ")


async def test_a_helper_error_that_is_its_own_is_asked_again(world: HelperWorld) -> None:
    def troubled(answer: Answer) -> Answer:
        world.calls.lie = lambda same: same
        raise PeerError(Code.INTERNAL)

    world.calls.lie = troubled
    run_id = await world.start(helper_task())
    cohort = (await world.cohort(CLIENTS))[:8]
    for client_id in cohort:
        await world.take_part(client_id)
    await world.ended_in_time(run_id)
    assert await world.mean(run_id) == mean_of(cohort)
