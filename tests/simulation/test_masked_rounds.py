"""Masked rounds from the first wake-up to the model: who was counted is seen in the model itself."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog

from aggregator.store import masks
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.keys import slot_secrets
from fedless.protocol.secagg.messages import MaskedReport
from fedless.protocol.secagg.shamir import SHARE_BYTES
from fedless.protocol.secagg.state import ClientState, Mark
from tests.simulation.masked_world import (
    DEADLINE_MS,
    SETUP_MS,
    UNMASK_MS,
    MaskedClient,
    MaskedWorld,
    masked_task,
)
from tests.simulation.world import pieces, refusal_of

EVERYBODY = [f"client-{n}" for n in range(8)]


async def test_whole_run_in_pairwise_mode(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=3))
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)
    await masked_world.shared(run_id, EVERYBODY, rounds=3)
    assert [r.mode for r in info.rounds] == ["pairwise"] * 3
    assert info.rounds[0].metrics["train_examples"] == 80
    assert info.rounds[0].metrics["train_loss"] == pytest.approx(5.5, abs=1e-3)


async def test_members_weigh_as_their_examples(masked_world: MaskedWorld) -> None:
    for client in masked_world.clients:
        client.examples = 10 + 7 * client.number
    run_id = await masked_world.begin()
    await masked_world.ended(run_id)
    weights = np.array([client.examples for client in masked_world.clients], float)
    found = np.array(await masked_world.weights(run_id))
    np.testing.assert_allclose(found[:8], weights / weights.sum(), atol=2e-6)
    assert not found[8:].any()


@pytest.mark.parametrize("step", ["check_in", "keys"])
async def test_member_that_leaves_before_it_joined_is_not_waited_for_longer_than_the_window(
    tmp_path: Path, step: str
) -> None:
    world = MaskedWorld(tmp_path, count=9)
    world.clients[3].leaves_before = step
    run_id = await world.begin(masked_task(size=9))
    await world.happened("keys_arrived", 8)
    await world.pass_time(SETUP_MS)
    await world.ended(run_id)
    await world.shared(run_id, [client.id for client in world.clients if client.number != 3])
    await world.close()


@pytest.mark.parametrize("step", ["roster", "shares"])
async def test_member_that_leaves_after_its_keys_is_not_in_e(tmp_path: Path, step: str) -> None:
    world = MaskedWorld(tmp_path, count=9)
    world.clients[3].leaves_before = step
    run_id = await world.begin(masked_task(size=9))
    await world.happened("shares_arrived", 8)
    await world.pass_time(SETUP_MS)
    await world.ended(run_id)
    await world.shared(run_id, [client.id for client in world.clients if client.number != 3])
    assert [len(epoch.members) for epoch in await world.key_epochs(run_id)] == [8]
    await world.close()


@pytest.mark.parametrize("step", ["inbox", "admit", "report"])
async def test_8_devices_with_2_dropouts_commit(masked_world: MaskedWorld, step: str) -> None:
    """Shared their keys, and were gone: the others' shares take their masks off (t = 6)."""
    for number in (2, 5):
        masked_world.clients[number].leaves_before = step
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 6)
    await masked_world.pass_time(DEADLINE_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    await masked_world.shared(run_id, [f"client-{n}" for n in (0, 1, 3, 4, 6, 7)])


@pytest.mark.parametrize("step", ["inbox", "admit", "report"])
async def test_8_devices_with_3_dropouts_are_abandoned_by_name(masked_world: MaskedWorld, step: str) -> None:
    for number in (2, 5, 7):
        masked_world.clients[number].leaves_before = step
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("report_arrived", 5)
    await masked_world.pass_time(DEADLINE_MS)
    info = await masked_world.ended(run_id)
    assert info.state == "failed"
    assert info.rounds[0].reason.startswith("too_few: 5 reports of at least 6")
    [round_] = await masked_world.masked(run_id)
    masked_world.nothing_revealed(round_)
    assert await masked_world.counted("unmask_requested") == 0
    assert await masked_world.weights(run_id) == [0.0] * 16


@pytest.mark.parametrize("step", ["unmask", "answer"])
async def test_two_holders_that_never_answer(masked_world: MaskedWorld, step: str) -> None:
    for number in (2, 5):
        masked_world.clients[number].leaves_before = step
    run_id = await masked_world.begin()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_fewer_answers_than_the_threshold_open_nothing(masked_world: MaskedWorld) -> None:
    for number in (2, 5, 7):
        masked_world.clients[number].leaves_before = "unmask"
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("unmask_answered", 5)
    await masked_world.pass_time(UNMASK_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("failed", 0)
    assert info.rounds[0].reason == "too_few: 5 holders answered, 6 are needed."
    [round_] = await masked_world.masked(run_id)
    assert round_.result is not None
    assert round_.result.sum_digest == b""
    assert all(answer.shares == b"" for answer in round_.responses)


async def test_holder_that_slept_through_the_round_is_woken_to_answer(masked_world: MaskedWorld) -> None:
    """Two did not report; one reporter leaves before its answer: one of the two, woken, makes the sixth."""
    sleeper, gone, left = (masked_world.clients[number] for number in (2, 5, 7))
    sleeper.leaves_before = gone.leaves_before = "admit"
    left.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 6)
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.happened("unmask_answered", 5)
    sleeper.come_back()
    await masked_world.pass_time(5_000)
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, [f"client-{n}" for n in (0, 1, 3, 4, 6, 7)])


async def test_wrong_share_is_located_and_survived(masked_world: MaskedWorld) -> None:
    def lie(shares: bytes) -> bytes:
        return shares[:SHARE_BYTES] + bytes([0]) + bytes(31) + b"\1" + shares[2 * SHARE_BYTES :]

    masked_world.clients[0].falsify = lie
    for client in masked_world.clients[1:]:
        client.leaves_before = "answer"
    run_id = await masked_world.begin(masked_task())
    await masked_world.happened("unmask_answered", 1)  # the wrong one is among the first six
    for client in masked_world.clients[1:]:
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)
    [round_] = await masked_world.masked(run_id)
    assert round_.suspects == (1,)
    assert await masked_world.counted("wrong_share") == 1


async def test_wrong_share_without_a_spare_holder_abandons_the_round(masked_world: MaskedWorld) -> None:
    masked_world.clients[0].falsify = lambda shares: shares[SHARE_BYTES:] + shares[:SHARE_BYTES]
    for number in (2, 5):
        masked_world.clients[number].leaves_before = "unmask"
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("unmask_answered", 6)
    await masked_world.pass_time(UNMASK_MS)
    info = await masked_world.ended(run_id)
    assert info.rounds[0].reason.startswith("bad_share")
    assert info.model_version == 0


async def test_masked_evaluation_is_a_round_of_few_coordinates(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=2, devices=4))
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 2)
    for round_ in info.rounds:
        assert round_.metrics["device_accuracy"] == pytest.approx(0.5, abs=1e-6)
        assert round_.metrics["device_loss"] == pytest.approx(5.5, abs=1e-3)
        assert round_.metrics["device_examples"] == 80
    found = await masked_world.masked(run_id)
    assert [(value.open.encoding.dimension, value.open.encoding.words) for value in found] == [
        (16, 18),
        (0, 3),
        (16, 18),
        (0, 3),
    ]


async def test_no_secret_is_left_after_the_commit(masked_world: MaskedWorld) -> None:
    """The answers' shares go with the commit, the sealed boxes with the key epoch; nothing comes back afterwards."""
    for client in masked_world.clients:
        client.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("unmask_requested")
    answers = {}
    for client in masked_world.clients:
        request = (await masked_world.masked(run_id))[0].request
        answers[client.id] = client.answer(codec.dumps(request))
        client.come_back()
    await masked_world.ended(run_id)
    [round_] = await masked_world.masked(run_id)
    assert len(round_.responses) >= 6
    assert all(answer.shares == b"" for answer in round_.responses)
    epoch = round_.open.epoch
    assert await masked_world.database.run(lambda c: masks.load_shares(c, epoch)) == {}
    for client in masked_world.clients:  # a late or repeated answer is dropped without a word
        await masked_world.rounds.post_response(client.id, round_.open.round_id, answers[client.id])
    await masked_world.runs.close()
    masked_world.database.close()
    content = b"".join(path.read_bytes() for path in masked_world.folder.glob("fedless.db*"))
    for answer in answers.values():
        assert answer[-SHARE_BYTES:] not in content


async def test_report_after_the_close_is_refused(masked_world: MaskedWorld) -> None:
    late = masked_world.clients[4]
    late.leaves_before = "report"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 7)
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.ended(run_id)
    assert await refusal_of(late.send(next(iter(late.outbox)))) is Code.ROUND_CLOSED
    await masked_world.shared(run_id, [client_id for client_id in EVERYBODY if client_id != late.id])


async def test_report_under_another_clients_id_is_refused(masked_world: MaskedWorld) -> None:
    one, two = masked_world.clients[:2]
    one.leaves_before = two.leaves_before = "report"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 6)
    round_id = next(iter(one.outbox))
    stolen = one.outbox[round_id][0]
    assert await refusal_of(masked_world.coordinator.begin_report(two.id, stolen)) is Code.NOT_IN_COHORT
    head = codec.loads(MaskedReport, stolen.masked)
    renamed = replace(stolen, masked=codec.dumps(replace(head, index=2)))
    assert await refusal_of(masked_world.coordinator.begin_report(two.id, renamed)) is Code.BAD_SIGNATURE
    for client in (one, two):
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_shares_under_another_clients_id_are_refused(masked_world: MaskedWorld) -> None:
    one, two = masked_world.clients[:2]
    for client in masked_world.clients:
        client.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("unmask_requested")
    [round_] = await masked_world.masked(run_id)
    mine = one.answer(codec.dumps(round_.request))
    posting = masked_world.rounds.post_response(two.id, round_.open.round_id, mine)
    assert await refusal_of(posting) is Code.NOT_IN_COHORT
    for client in masked_world.clients:
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_repeated_identical_and_different_reports_and_answers(masked_world: MaskedWorld) -> None:
    one, *others = masked_world.clients
    for client in others:
        client.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("unmask_answered", 1)
    [round_] = await masked_world.masked(run_id)
    round_id = round_.open.round_id
    header, _ = one.outbox[round_id]
    assert await masked_world.coordinator.begin_report(one.id, header) == (header.length_bytes, True)
    other_bytes = replace(header, sha256=bytes(32))
    assert await refusal_of(masked_world.coordinator.begin_report(one.id, other_bytes)) is Code.WRONG_DIGEST
    same = one.answer(codec.dumps(round_.request))
    await masked_world.rounds.post_response(one.id, round_id, same)
    one.falsify = lambda shares: shares[::-1]
    different = one.answer(codec.dumps(round_.request))
    posting = masked_world.rounds.post_response(one.id, round_id, different)
    assert await refusal_of(posting) is Code.CONFLICTING_REPEAT
    assert await masked_world.counted("unmask_answered") == 1
    for client in others:
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_a_count_or_a_sum_in_the_clear_is_refused(masked_world: MaskedWorld) -> None:
    one, two = masked_world.clients[:2]
    one.leaves_before = two.leaves_before = "report"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 6)
    for client in (one, two):
        header, _ = next(iter(client.outbox.values()))
        for telling in (replace(header, examples=10), replace(header, sums={"loss": 1.0})):
            announcing = masked_world.coordinator.begin_report(client.id, telling)
            assert await refusal_of(announcing) is Code.MALFORMED
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_journal_restored_from_an_old_image_leaves_the_key_epoch(masked_world: MaskedWorld) -> None:
    """A client whose state is behind our record is told so, and masks no slot a second time."""
    old = masked_world.clients[1]
    old.before_round[3] = lambda: old.keep(old.images[1])  # both in the second key epoch, which has two slots
    run_id = await masked_world.begin(masked_task(rounds=3))
    await masked_world.happened("report_arrived", 8 + 8 + 7)
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.ended(run_id)
    assert old.refusals == [Code.STATE_OLDER]
    found = (await masked_world.weights(run_id))[:8]
    assert found[1] == pytest.approx(2 / 8, abs=1e-5)
    assert found[0] == pytest.approx(2 / 8 + 1 / 7, abs=1e-5)


async def test_lost_key_state_is_told_by_name(masked_world: MaskedWorld) -> None:
    lost = masked_world.clients[1]
    lost.leaves_before = "admit"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 7)
    lost.keep(ClientState(lost.id))
    lost.come_back()

    async def refused() -> bool:
        return Code.STATE_OLDER in lost.refusals

    await masked_world.until(refused)
    [round_] = await masked_world.masked(run_id)
    ticket = masked_world.waker.tickets(lost.id)[-1]
    behind = CheckIn(ticket.round_id, ticket.nonce, codec.dumps(Mark(round_.open.epoch - 1, 1, 1)))
    assert await refusal_of(masked_world.coordinator.check_in(lost.id, behind)) is Code.STATE_OLDER
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, [client_id for client_id in EVERYBODY if client_id != lost.id])


async def test_revoked_member_is_absent_from_the_next_slot(tmp_path: Path) -> None:
    """The others' shares take its masks off: the key epoch goes on."""
    world = MaskedWorld(tmp_path, count=9)

    def revoke() -> None:
        world.fleet.records = [record for record in world.fleet.records if record.client_id != "client-4"]

    world.clients[0].before_round[2] = revoke  # in the second key epoch's first slot
    run_id = await world.begin(masked_task(rounds=3, size=9))
    await world.ended(run_id)
    found = await world.weights(run_id)
    assert found[4] == pytest.approx(2 / 9, abs=1e-5)
    assert found[0] == pytest.approx(2 / 9 + 1 / 8, abs=1e-5)
    assert len(await world.key_epochs(run_id)) == 2
    await world.close()


async def test_report_of_a_member_that_was_revoked_meanwhile_is_refused(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path, count=9)
    revoked = world.clients[4]
    revoked.leaves_before = "report"
    run_id = await world.begin(masked_task(size=9))
    await world.happened("report_arrived", 8)
    world.revoked.add(revoked.id)
    assert await refusal_of(revoked.send(next(iter(revoked.outbox)))) is Code.CERTIFICATE_REVOKED
    await world.pass_time(DEADLINE_MS)
    await world.ended(run_id)
    await world.shared(run_id, [client.id for client in world.clients if client is not revoked])
    await world.close()


async def test_update_beyond_what_the_ring_holds_is_refused_with_an_explanation(
    masked_world: MaskedWorld,
) -> None:
    run_id = await masked_world.begin(masked_task(secagg="bits = 16\nclip = 100000.0\n"))
    info = await masked_world.ended(run_id)
    assert info.state == "failed"
    assert info.reason.startswith("ring_overflow: 8 clients with coordinates up to 100000")


async def test_truncated_over_long_and_corrupted_masked_uploads_are_refused(
    masked_world: MaskedWorld,
) -> None:
    """None of them leaves a trace in the sum; the right bytes may still come."""
    cut, long, spoiled = masked_world.clients[:3]
    for client in (cut, long, spoiled):
        client.leaves_before = "report"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 5)

    async def upload(client: MaskedClient, change: Callable[[bytes], bytes]) -> Code:
        [(round_id, (header, data))] = client.outbox.items()
        assert await masked_world.coordinator.begin_report(client.id, header) == (0, False)
        sending = masked_world.coordinator.put_report(client.id, round_id, 0, pieces(change(data)))
        return await refusal_of(sending)

    assert await upload(cut, lambda data: data[:-1]) is Code.WRONG_LENGTH
    assert await upload(long, lambda data: data + b"\0") is Code.WRONG_LENGTH
    assert await upload(spoiled, lambda data: bytes([data[0] ^ 1]) + data[1:]) is Code.WRONG_DIGEST
    for client in (cut, long, spoiled):
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_secrets_are_in_no_log_event_repr_or_error(masked_world: MaskedWorld) -> None:
    """A round with a liar, a dropout and refusals; then everything that was said is searched for what was secret."""
    masked_world.clients[0].falsify = lambda shares: shares[SHARE_BYTES:] + shares[:SHARE_BYTES]
    masked_world.clients[2].leaves_before = "report"
    said: list[object] = []
    with structlog.testing.capture_logs() as lines:
        run_id = await masked_world.begin()
        await masked_world.happened("report_arrived", 7)
        late = masked_world.clients[2]
        [(round_id, (header, _))] = late.outbox.items()
        wrong = replace(header, masked=masked_world.clients[1].outbox[round_id][0].masked)
        with pytest.raises(PeerError) as refusal:
            await masked_world.coordinator.begin_report(late.id, wrong)
        said += [str(refusal.value), repr(refusal.value)]
        await masked_world.pass_time(DEADLINE_MS)
        await masked_world.happened("unmask_requested")
        [asking] = await masked_world.masked(run_id)
        said += [repr(asking), repr(await masked_world.key_epochs(run_id))]
        await masked_world.ended(run_id)
    assert len(lines) > 20
    said += [lines, [event.fields async for event in masked_world.runs.watch(run_id)]]
    said += [repr(client.state) for client in masked_world.clients]
    text = repr(said)
    assert "unmask_requested" in repr([event.event async for event in masked_world.runs.watch(run_id)])
    for client in masked_world.clients:
        for secret in secrets_of(client):
            for written in (
                repr(secret),
                repr(secret)[2:-1],
                secret.hex(),
                base64.b64encode(secret).decode(),
            ):
                assert written not in text


def secrets_of(client: MaskedClient) -> list[bytes]:
    """What nobody may read: the chain key, the slot's secrets, and the shares that were handed out."""
    epoch = client.images[0].epochs[-1]
    [slot] = epoch.slots
    assert slot.mask_shares
    own = slot_secrets(epoch.chain_key, 0)
    shares = [slot.mask_shares[at : at + SHARE_BYTES] for at in range(0, len(slot.mask_shares), SHARE_BYTES)]
    shares += [slot.self_shares[at : at + SHARE_BYTES] for at in range(0, len(slot.self_shares), SHARE_BYTES)]
    return [epoch.chain_key, own.mask_private, own.self_seed, *shares]
