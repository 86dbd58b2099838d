"""Masked rounds in which somebody lies, repeats himself, was revoked or forgot: he is refused, and nobody else."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.keys import slot_secrets
from fedless.protocol.secagg.messages import MaskedReport
from fedless.protocol.secagg.shamir import SHARE_BYTES
from fedless.protocol.secagg.state import ClientState, Mark
from tests.simulation.masked_client import MaskedClient
from tests.simulation.masked_world import (
    DEADLINE_MS,
    MaskedWorld,
    masked_task,
)
from tests.simulation.world import pieces, refusal_of

EVERYBODY = [f"client-{n}" for n in range(8)]


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
    with pytest.raises(PeerError, match="8 clients with coordinates up to 100000") as caught:
        await masked_world.begin(masked_task(secagg="bits = 16\nclip = 100000.0\n"))
    assert caught.value.code is Code.RING_OVERFLOW


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
