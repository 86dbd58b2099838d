"""kill -9 of the aggregator between any two steps: nothing accepted is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aggregator.store import rounds
from tests.simulation.world import World, counted, number_of, pieces, task, unit


async def test_restart_before_anybody_checked_in(world: World) -> None:
    run_id = await world.start()
    cohort = await world.cohort(4)
    await world.restart()
    for client_id in cohort:
        await world.report(client_id)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)


async def test_tickets_are_sent_again_byte_for_byte(world: World) -> None:
    await world.start()
    first, *_ = await world.cohort(4)
    await world.restart()

    async def twice() -> bool:
        return len(world.waker.sent[first]) == 2

    await world.until(twice)
    assert len(set(world.waker.sent[first])) == 1


async def test_restart_after_each_report(world: World) -> None:
    run_id = await world.start()
    cohort = await world.cohort(4)
    for client_id in cohort:
        await world.report(client_id)
        await world.restart()
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)


async def test_restart_in_the_middle_of_an_upload(world: World) -> None:
    run_id = await world.start(task(size=2))
    one, two = await world.cohort(2)
    await world.check_in(one)
    data = unit(number_of(one))
    header = await world.header(one, data)
    await world.coordinator.begin_report(one, header)
    arrived = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield data[:24]
        arrived.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(world.coordinator.put_report(one, header.round_id, 0, slowly()))
    await arrived.wait()
    await world.restart()
    assert upload.cancelled()
    assert await world.coordinator.begin_report(one, header) == (24, False)
    await world.coordinator.put_report(one, header.round_id, 24, pieces(data[24:]))
    await world.report(two)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([one, two])


async def test_restart_between_the_last_byte_and_the_counting(world: World) -> None:
    run_id = await world.start(task(size=2))
    one, two = await world.cohort(2)
    await world.check_in(one)
    data = unit(number_of(one))
    header = await world.header(one, data)
    await world.coordinator.begin_report(one, header)
    await world.spool.receive(header.round_id, one, 0, len(data), pieces(data))
    await world.restart()
    assert await world.coordinator.begin_report(one, header) == (len(data), True)
    await world.report(two)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([one, two])


async def test_restart_in_the_grace_time(world: World) -> None:
    run_id = await world.start()
    slow, *fast = await world.cohort(4)
    for client_id in fast:
        await world.report(client_id)
    await world.phase(run_id, "grace")
    await world.restart()
    await world.report(slow)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([slow, *fast])


async def test_a_deadline_that_passed_while_nobody_was_there(world: World) -> None:
    run_id = await world.start(task(minimum=1, rounds=1))
    one, *_ = await world.cohort(4)
    await world.report(one)
    await world.crash()
    world.clock.advance(200_000)
    world.reopen()
    await world.runs.resume_all()
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([one])


async def test_restart_between_closing_and_commit(world: World) -> None:
    """The round is recorded as committing, and the process dies before the model is."""
    run_id = await world.start()
    cohort = await world.cohort(4)
    for client_id in cohort[:-1]:
        await world.report(client_id)
    await world.runs.halt(run_id)  # nobody commits
    await world.report(cohort[-1])
    assert (await world.runs.show(run_id)).rounds[0].state == "committing"
    await world.restart()
    info = await world.ended(run_id)
    assert (info.model_version, len(info.rounds)) == (1, 1)
    assert await world.weights(run_id) == counted(cohort)


async def test_restart_between_commit_and_evaluation(world: World) -> None:
    run_id = await world.start()
    hanging = asyncio.Event()
    world.evaluator.before = hanging.wait
    for client_id in await world.cohort(4):
        await world.report(client_id)
    await world.phase(run_id, "committed")
    await world.restart()
    info = await world.ended(run_id)
    assert "test_accuracy" in info.rounds[0].metrics
    assert info.model_version == 1


async def test_no_model_version_is_skipped_or_used_twice(world: World) -> None:
    run_id = await world.start(task(rounds=3))
    for nth in (1, 2, 3):
        for number in range(4):
            await world.report(f"client-{number}", nth)
            if number % 2:
                await world.restart()
    info = await world.ended(run_id)
    assert info.model_version == 3
    assert [r.number for r in info.rounds] == [1, 2, 3]
    assert (await world.weights(run_id))[:4] == [0.75] * 4


async def test_a_damaged_accepted_report_abandons_the_round_by_name(world: World) -> None:
    run_id = await world.start(task(minimum=4, rounds=1))
    cohort = await world.cohort(4)
    for client_id in cohort[:-1]:
        await world.report(client_id)
    round_id = (await world.ticket(cohort[0])).round_id
    await world.crash()
    world.spool.file(round_id, cohort[0]).write_bytes(unit(9))
    world.reopen()
    await world.runs.resume_all()
    await world.report(cohort[-1])
    abandoned = await world.phase(run_id, "abandoned")
    assert abandoned.reason.startswith("state_corrupt")
    assert await world.weights(run_id) == [0.0] * 16


async def test_left_over_spool_files_are_erased(world: World) -> None:
    run_id = await world.start(task(size=2))
    for client_id in await world.cohort(2):
        await world.report(client_id)
    await world.ended(run_id)
    left_over = world.folder / "spool" / "12345"
    left_over.mkdir()
    (left_over / "client-1.part").write_bytes(b"of a round that ended in a crash")
    await world.restart()
    assert not left_over.exists()


async def test_a_stopped_run_stays_stopped(world: World) -> None:
    run_id = await world.start()
    one, *_ = await world.cohort(4)
    await world.report(one)
    info = await world.runs.stop(run_id)
    assert (info.state, info.rounds[0].state) == ("stopped", "abandoned")
    await world.restart()
    assert (await world.runs.show(run_id)).state == "stopped"
    assert await world.database.run(rounds.unended) == []
    assert await world.weights(run_id) == [0.0] * 16


async def test_a_stop_that_was_cut_short_is_completed(world: World) -> None:
    from aggregator.store import runs
    from aggregator.store.records import RunState

    run_id = await world.start()
    await world.cohort(4)
    await world.database.run(lambda c: runs.set_state(c, run_id, RunState.STOPPED, "stopped", 1))
    await world.restart()
    assert (await world.runs.show(run_id)).rounds[0].state == "abandoned"


async def test_two_runs_go_on_side_by_side(world: World) -> None:
    one, two = await world.start(), await world.start()
    for nth in (1, 2):
        for number in range(4):
            await world.report(f"client-{number}", nth)
        await world.restart()
    for run_id in (one, two):
        await world.ended(run_id)
        assert await world.weights(run_id) == counted([f"client-{number}" for number in range(4)])
