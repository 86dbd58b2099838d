"""kill -9 of the aggregator behind every step of a masked run: nothing accepted is lost or counted twice.

Each kill falls right behind the transaction that records a step, before anybody hears of it.
"""

from __future__ import annotations

import asyncio

import pytest

from aggregator.store import masks, runs
from aggregator.store.records import RunState
from fedless.protocol.errors import Code
from fedless.protocol.secagg import codec
from tests.simulation.masked_world import DEADLINE_MS, SETUP_MS, UNMASK_MS, MaskedWorld, masked_task
from tests.simulation.world import refusal_of

EVERYBODY = [f"client-{n}" for n in range(8)]
STEPS = [
    ("run_started", 1),
    ("key_epoch_opened", 1),
    ("keys_arrived", 1),
    ("keys_arrived", 5),
    ("keys_arrived", 8),
    ("roster_made", 1),
    ("shares_arrived", 1),
    ("shares_arrived", 7),
    ("shares_arrived", 8),
    ("key_epoch_active", 1),
    ("cohort_selected", 1),
    ("client_checked_in", 1),
    ("client_checked_in", 8),
    ("report_announced", 1),
    ("report_announced", 8),
    ("report_arrived", 1),
    ("report_arrived", 6),
    ("report_arrived", 8),
    ("unmask_requested", 1),
    ("unmask_answered", 1),
    ("unmask_answered", 5),
    ("unmask_answered", 6),
    ("model_committed", 1),
    ("key_epoch_ended", 1),
    ("key_epoch_opened", 2),
    ("unmask_answered", 14),
]


@pytest.mark.parametrize(("event", "times"), STEPS)
async def test_server_restart_behind_every_step(masked_world: MaskedWorld, event: str, times: int) -> None:
    masked_world.kill_after(event, times)
    beginning = asyncio.create_task(masked_world.begin(masked_task(rounds=2)))
    await masked_world.die()
    assert beginning.done()
    [info] = await masked_world.runs.list()
    info = await masked_world.ended(info.run_id)
    assert (info.state, info.model_version, len(info.rounds)) == ("finished", 2, 2)
    await masked_world.shared(info.run_id, EVERYBODY, rounds=2)
    for round_ in await masked_world.masked(info.run_id):
        assert round_.result is not None
        assert round_.result.survivors == 8
        assert all(answer.shares == b"" for answer in round_.responses)


async def test_server_restart_after_each_of_many_steps(masked_world: MaskedWorld) -> None:
    """One round in which the aggregator dies again and again, and two of its clients for good."""
    masked_world.clients[6].leaves_before = "admit"
    masked_world.clients[7].leaves_before = "report"
    masked_world.kill_after("keys_arrived", 4)
    run_id = await masked_world.begin()
    for event, times in (
        ("roster_made", 1),
        ("key_epoch_active", 1),
        ("report_arrived", 3),
        ("report_arrived", 6),
    ):
        await masked_world.die()
        masked_world.kill_after(event, times)
    await masked_world.die()
    masked_world.kill_after("unmask_answered", 3)
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.die()
    info = await masked_world.ended(run_id)
    assert (info.model_version, len(info.rounds)) == (1, 1)
    await masked_world.shared(run_id, EVERYBODY[:6])


async def test_set_up_that_was_due_while_nobody_was_there_fails_by_name_and_is_done_again(
    masked_world: MaskedWorld,
) -> None:
    masked_world.clients[0].leaves_before = "keys"
    run_id = await masked_world.begin()
    await masked_world.happened("keys_arrived", 7)
    await masked_world.crash()
    masked_world.clock.advance(2 * SETUP_MS)
    masked_world.clients[0].leaves_before = ""
    masked_world.reopen()
    await masked_world.runs.resume_all()
    await masked_world.happened("key_epoch_ended")
    masked_world.launch()
    await masked_world.pass_time(2_000)
    info = await masked_world.ended(run_id)
    assert info.model_version == 1
    one, two = await masked_world.key_epochs(run_id)
    assert one.reason.startswith("too_few: Expected 8 clients or more in a key epoch, found 7")
    assert len(two.members) == 8


async def test_abandoned_round_is_told_to_its_members_also_after_a_restart(masked_world: MaskedWorld) -> None:
    """The process dies between the round's abandonment and M8: it is signed at the next start."""
    for number in (5, 6, 7):
        masked_world.clients[number].leaves_before = "report"
    masked_world.kill_after("deadline_passed", 1)
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("report_arrived", 5)
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.die()
    await masked_world.ended(run_id)
    [round_] = await masked_world.masked(run_id)
    masked_world.nothing_revealed(round_)
    assert round_.result is not None
    assert round_.result.reason == Code.TOO_FEW.value
    assert [reported.index for reported in round_.reports] == [1, 2, 3, 4, 5]
    [epoch] = await masked_world.key_epochs(run_id)
    assert epoch.state.abandoned_in_a_row == 1
    told = await masked_world.rounds.result("client-0", round_.open.round_id)
    assert codec.loads(type(round_.result), told) == round_.result


async def test_restart_after_the_unmask_window_asks_for_the_same_answers_again(
    masked_world: MaskedWorld,
) -> None:
    """M6 is signed once: after a restart the same one is said again, and the answers that came count."""
    for client in masked_world.clients[3:]:
        client.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("unmask_answered", 3)
    [before] = await masked_world.masked(run_id)
    await masked_world.crash()
    masked_world.clock.advance(UNMASK_MS)
    masked_world.reopen()
    await masked_world.runs.resume_all()
    for client in masked_world.clients:
        client.leaves_before = ""
    masked_world.launch()
    await masked_world.ended(run_id)
    [after] = await masked_world.masked(run_id)
    assert after.request == before.request
    assert await masked_world.counted("unmask_requested") == 1
    await masked_world.shared(run_id, EVERYBODY)


@pytest.mark.parametrize("phase", ["keys", "report", "answer"])
async def test_stop_in_every_phase_reveals_nothing_more_and_erases(
    masked_world: MaskedWorld, phase: str
) -> None:
    waits_for = {"keys": "key_epoch_opened", "report": "report_announced", "answer": "unmask_requested"}
    for client in masked_world.clients:
        client.leaves_before = phase
    masked_world.clients[0].leaves_before = "unmask" if phase == "answer" else ""
    if phase == "report":
        masked_world.clients[0].leaves_before = ""
    run_id = await masked_world.begin()
    await masked_world.happened(waits_for[phase])
    info = await masked_world.runs.stop(run_id)
    assert info.state == "stopped"
    for round_ in await masked_world.masked(run_id):
        assert round_.result is not None
        assert round_.result.sum_digest == b""
        assert all(answer.shares == b"" for answer in round_.responses)
    epoch = (await masked_world.key_epochs(run_id))[0]
    assert epoch.ended_at_ms
    assert await masked_world.database.run(lambda c: masks.load_shares(c, epoch.epoch)) == {}
    late = masked_world.clients[1]
    if phase == "keys":
        posting = masked_world.epochs.post_keys(late.id, epoch.epoch, late.begin(epoch.epoch, 1))
        assert await refusal_of(posting) is Code.ROUND_CLOSED
    await masked_world.epochs.let_go(run_id)
    assert await refusal_of(masked_world.epochs.roster(late.id, epoch.epoch)) is Code.ROUND_CLOSED


async def test_keys_that_cross_the_runs_end_do_not_revive_the_key_epoch(masked_world: MaskedWorld) -> None:
    """The run is recorded as ended, and this process has not heard of it yet."""
    late = masked_world.clients[0]
    for client in masked_world.clients:
        client.leaves_before = "keys"
    run_id = await masked_world.begin()
    await masked_world.happened("key_epoch_opened")
    [epoch] = await masked_world.key_epochs(run_id)

    def stopped() -> None:
        masked_world.database.run_now(lambda c: runs.set_state(c, run_id, RunState.STOPPED, "stopped", 1))
        masked_world.database.run_now(lambda c: masks.end_all(c, run_id, "stopped", 1))

    stopped()
    posting = masked_world.epochs.post_keys(late.id, epoch.epoch, late.begin(epoch.epoch, 1))
    assert await refusal_of(posting) is Code.ROUND_CLOSED
    [epoch] = await masked_world.key_epochs(run_id)
    assert (epoch.ended_at_ms, epoch.state.offers) == (1, ())
