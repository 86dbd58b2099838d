"""Key epochs: their set-up with the run's clients, their length, and their end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from aggregator import stories
from aggregator.store import masks
from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn, Kind, NotNow, Offer
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.state import ClientState
from tests.simulation.masked_world import DEADLINE_MS, SETUP_MS, MaskedWorld, masked_task
from tests.simulation.world import refusal_of

EVERYBODY = [f"client-{n}" for n in range(8)]


async def test_key_epoch_that_is_used_up_is_followed_by_one_twice_as_long(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=7))
    await masked_world.ended(run_id)
    found = await masked_world.key_epochs(run_id)
    assert [(epoch.state.slots, epoch.state.next_slot) for epoch in found] == [(1, 1), (2, 2), (4, 4)]
    assert [epoch.reason for epoch in found] == [
        "used_up: all 1 slots",
        "used_up: all 2 slots",
        "run_finished",
    ]
    await masked_world.shared(run_id, EVERYBODY, rounds=7)


async def test_two_abandoned_rounds_in_a_row_end_the_key_epoch(masked_world: MaskedWorld) -> None:
    def busy() -> None:
        raise PeerError(Code.POLICY)

    for number in (5, 6, 7):
        masked_world.clients[number].before_round = {4: busy, 5: busy}
    run_id = await masked_world.begin(masked_task(rounds=4, abandon_limit=3))
    for reports in (24 + 5, 24 + 10):
        await masked_world.happened("report_arrived", reports)
        await masked_world.pass_time(DEADLINE_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version, len(info.rounds)) == ("finished", 4, 6)
    await masked_world.shared(run_id, EVERYBODY, rounds=4)
    found = await masked_world.key_epochs(run_id)
    assert [epoch.state.slots for epoch in found] == [1, 2, 4, 4]
    assert found[2].reason == "abandoned: 2 rounds in a row"
    assert found[2].state.next_slot == 2
    abandoned = [value for value in await masked_world.masked(run_id) if value.open.epoch == found[2].epoch]
    for round_ in abandoned:
        masked_world.nothing_revealed(round_)


@pytest.mark.parametrize(("step", "event"), [("keys", "keys_arrived"), ("shares", "shares_arrived")])
async def test_set_up_with_too_few_fails_by_name_and_the_run_does_not_hang(
    masked_world: MaskedWorld, step: str, event: str
) -> None:
    """Seven go on where eight are needed; the second time one does not come at all."""
    masked_world.clients[2].leaves_before = step
    run_id = await masked_world.begin(masked_task(abandon_limit=2))
    await masked_world.happened(event, 7)
    await masked_world.pass_time(SETUP_MS)
    await masked_world.happened("run_waits")
    before = await masked_world.counted("keys_arrived")
    await masked_world.pass_time(2_000)
    await masked_world.happened("keys_arrived", before + 7)
    await masked_world.pass_time(SETUP_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, len(info.rounds)) == ("failed", 0)
    assert info.reason == "too_few: Expected 8 clients or more in a key epoch, found 7."
    for epoch in await masked_world.key_epochs(run_id):
        assert epoch.reason.startswith("too_few: Expected ")
        assert "8" in epoch.reason
        assert await masked_world.database.run(partial(masks.load_shares, epoch=epoch.epoch)) == {}


async def test_a_device_that_refuses_to_join_is_not_waited_for_and_its_reason_is_told(
    masked_world: MaskedWorld,
) -> None:
    """No time passes: with seven of eight left, eight cannot become members."""
    masked_world.clients[2].leaves_before = "shares"
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("shares_arrived", 7)
    [epoch] = await masked_world.key_epochs(run_id)
    for _ in range(2):
        await masked_world.epochs.gave_up("client-2", epoch.epoch, Code.POLICY)
    info = await masked_world.ended(run_id)
    why = f"Expected shares of 8 members or more, found 7. 1 of 8: {Code.POLICY.sentence} (policy)"
    assert info.reason == f"too_few: {why}"
    assert (await masked_world.key_epochs(run_id))[0].reason == info.reason
    assert await masked_world.counted("client_gave_up") == 1
    story = await stories.tell(masked_world.database, stories.Asked(run_id), masked_world.clock())
    assert any(Code.POLICY.sentence in what for _, what, _ in story.timeline)
    with pytest.raises(PeerError) as refusal:
        await masked_world.epochs.gave_up("client-2", epoch.epoch, Code.POLICY)
    assert refusal.value.code is Code.ROUND_CLOSED


async def test_fleet_too_small_for_masks_is_never_left_waiting_silently(masked_world: MaskedWorld) -> None:
    """Eight are enrolled, one of them is not available: the run says what it waits for, and how long."""
    last = masked_world.fleet.records[-1]
    masked_world.fleet.records[-1] = replace(last, not_before_ms=masked_world.clock() + 10**9)
    run_id = await masked_world.begin(masked_task(wait_s=30))
    await masked_world.happened("run_waits")
    info = await masked_world.runs.show(run_id)
    assert info.reason == "waits for clients: 7 clients eligible, at least 8 needed"
    await masked_world.pass_time(30_000)
    info = await masked_world.ended(run_id)
    assert info.state == "failed"
    assert info.reason == "too_few: 7 clients eligible, at least 8 needed, after 30 s"


async def test_own_minimum_of_reports_is_kept(tmp_path: Path) -> None:
    """Ten reports are asked for; nine join: no sum of nine."""
    world = MaskedWorld(tmp_path, count=10)
    world.clients[2].leaves_before = "keys"
    run_id = await world.begin(masked_task(size=10, minimum=10, abandon_limit=1))
    await world.happened("keys_arrived", 9)
    await world.pass_time(SETUP_MS)
    info = await world.ended(run_id)
    assert info.reason.startswith("too_few: Expected 10 clients or more in a key epoch, found 9")
    await world.close()


async def test_repeated_identical_steps_get_the_same_answers(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=2))
    await masked_world.happened("key_epoch_active", 2)
    epoch = (await masked_world.key_epochs(run_id))[1].epoch
    client, epochs = masked_world.clients[3], masked_world.epochs
    shares = client.world.database.run_now(lambda c: masks.load_shares(c, epoch))[4]
    before = await masked_world.key_epochs(run_id)
    await epochs.post_keys(client.id, epoch, client.begin(epoch, 2))
    await epochs.post_shares(client.id, epoch, codec.dumps(shares))
    for step in (epochs.roster, epochs.inbox):
        assert await step(client.id, epoch) == await step(client.id, epoch)
    assert await masked_world.counted("keys_arrived") == 16
    assert await masked_world.counted("shares_arrived") == 16
    assert [e.state.roster for e in await masked_world.key_epochs(run_id)] == [e.state.roster for e in before]
    await masked_world.ended(run_id)


async def test_repeated_different_keys_and_shares_are_refused(masked_world: MaskedWorld) -> None:
    for client in masked_world.clients:
        client.leaves_before = "roster"
    masked_world.clients[7].leaves_before = "keys"
    run_id = await masked_world.begin()
    await masked_world.happened("keys_arrived", 7)
    [epoch] = await masked_world.key_epochs(run_id)
    twin, last, epochs = masked_world.clients[0], masked_world.clients[7], masked_world.epochs
    own, twin.state = twin.state, ClientState(twin.id)
    others = twin.begin(epoch.epoch, 1, flavour=" once more")
    assert await refusal_of(epochs.post_keys(twin.id, epoch.epoch, others)) is Code.CONFLICTING_REPEAT
    last.come_back()
    await masked_world.happened("roster_made")
    assert await refusal_of(epochs.post_keys(twin.id, epoch.epoch, others)) is Code.CONFLICTING_REPEAT

    roster = await epochs.roster(twin.id, epoch.epoch)
    twin.keep(own)
    right = twin.share(roster)
    wrong = right[:-1] + bytes([right[-1] ^ 1])
    await epochs.post_shares(twin.id, epoch.epoch, right)
    assert await refusal_of(epochs.post_shares(twin.id, epoch.epoch, wrong)) is Code.CONFLICTING_REPEAT
    for client in masked_world.clients:
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_step_under_another_clients_id_is_refused(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path, count=9)
    for client in world.clients:
        client.leaves_before = "keys"
    await world.begin(masked_task(size=8))
    await world.happened("key_epoch_opened")

    async def joined() -> list[str]:
        cohort = [client for client in world.clients if client.state.epochs]
        return [client.id for client in cohort] if len(cohort) == 8 else []

    cohort = await world.until(joined)
    [run] = await world.runs.list()
    [epoch] = await world.key_epochs(run.run_id)
    [outsider] = [client for client in world.clients if client.id not in cohort]
    one, two = (client for client in world.clients if client.id in cohort[:2])
    keys = one.begin(epoch.epoch, 1)
    nonce = epoch.cohort[one.id]
    assert await refusal_of(world.epochs.post_keys(two.id, epoch.epoch, keys)) is Code.NOT_IN_COHORT
    assert await refusal_of(world.epochs.post_keys(outsider.id, epoch.epoch, keys)) is Code.NOT_IN_COHORT
    check_in = CheckIn(epoch.epoch, nonce)
    assert await refusal_of(world.epochs.check_in(outsider.id, check_in)) is Code.NOT_IN_COHORT
    assert await refusal_of(world.epochs.check_in(two.id, check_in)) is Code.TICKET_FOREIGN
    assert isinstance(await world.epochs.check_in(one.id, check_in), Offer)
    for client in world.clients:
        client.come_back()
    await world.ended(run.run_id)

    async def over() -> bool:
        return isinstance(await world.epochs.check_in(one.id, check_in), NotNow)

    await world.until(over)
    await world.close()


async def test_client_that_was_revoked_during_the_set_up_is_not_in_the_roster(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path, count=9)
    world.clients[0].leaves_before = "keys"
    run_id = await world.begin(masked_task(size=9))
    await world.happened("keys_arrived", 8)
    world.revoked.add("client-5")
    world.clients[0].come_back()
    await world.ended(run_id)
    await world.shared(run_id, [client.id for client in world.clients if client.number != 5])
    await world.close()


async def test_tickets_of_a_set_up_are_repeated_byte_for_byte(masked_world: MaskedWorld) -> None:
    for client in masked_world.clients:
        client.leaves_before = "shares"
    await masked_world.begin()
    await masked_world.happened("roster_made")
    masked_world.clock.advance(SETUP_MS // 2)
    await masked_world.restart()

    async def again() -> bool:
        return all(len(masked_world.waker.sent[client_id]) >= 2 for client_id in EVERYBODY)

    await masked_world.until(again)
    for client_id in EVERYBODY:
        assert len(set(masked_world.waker.sent[client_id])) == 1
        [ticket] = masked_world.waker.tickets(client_id)
        assert ticket.kind is Kind.EPOCH
        assert len(wire.ticket_to_bytes(ticket)) <= 1024


async def test_ended_rounds_and_key_epochs_are_not_kept_in_memory(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=3))
    await masked_world.ended(run_id)
    for epoch in await masked_world.key_epochs(run_id):
        first, second = [await masked_world.epochs.find(epoch.epoch) for _ in range(2)]
        assert first is not second
        assert first.value == epoch
