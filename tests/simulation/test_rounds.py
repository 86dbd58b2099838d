"""Rounds from wake-up to model: the plain course, lost clients, lost answers."""

from __future__ import annotations

import hashlib

import pytest

from fedless.protocol.errors import Code
from fedless.protocol.messages import NotNow, Offer
from tests.simulation.world import World, counted, metrics, pieces, refusal_of, task, unit

# -- the plain course of things


async def test_a_round_counts_every_client_once(world: World) -> None:
    run_id = await world.start()
    cohort = await world.cohort(4)
    for client_id in cohort:
        await world.report(client_id)
    info = await world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    assert await world.weights(run_id) == counted(cohort)
    assert len(world.waker.announced) == 1
    [first] = info.rounds
    assert (first.selected, first.checked_in, first.reported, first.examples) == (4, 4, 4, 40)
    assert first.metrics["train_loss"] == pytest.approx(2.0)
    assert first.metrics["train_accuracy"] == pytest.approx(0.5)
    assert first.metrics["test_accuracy"] == pytest.approx(1 / 16)
    assert {"wake", "train", "aggregate", "commit", "evaluate"} <= set(first.phases_ms)
    assert not (world.folder / "spool" / str(first.round_id)).exists()


async def test_updates_weigh_as_their_example_counts(world: World) -> None:
    run_id = await world.start()
    for number, client_id in enumerate(sorted(await world.cohort(4))):
        await world.report(client_id, examples=10 * (number + 1))
    await world.ended(run_id)
    assert (await world.weights(run_id))[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])


async def test_models_follow_one_another(world: World) -> None:
    run_id = await world.start(task(rounds=3))
    for nth in (1, 2, 3):
        for number in range(4):
            await world.report(f"client-{number}", nth)
    info = await world.ended(run_id)
    assert [r.state for r in info.rounds] == ["committed"] * 3
    assert (await world.weights(run_id))[:4] == pytest.approx([0.75] * 4)
    versions = [world.waker.tickets("client-0")[nth].model_version for nth in range(3)]
    assert versions == [0, 1, 2]


async def test_the_log_tells_the_whole_story(world: World) -> None:
    run_id = await world.start(task(size=2))
    for client_id in await world.cohort(2):
        await world.report(client_id)
    await world.ended(run_id)
    log = await world.log(run_id)
    assert log[:3] == ["run_started", "clients_considered", "cohort_selected"]
    assert log[-3:] == ["model_committed", "model_evaluated", "run_finished"]
    assert log.count("report_arrived") == 2


async def test_a_run_ends_early_at_its_target(world: World) -> None:
    run_id = await world.start(task(rounds=9, top='test_set = "test.npz"', stop="test_accuracy = 0.06"))
    for client_id in await world.cohort(4):
        await world.report(client_id)
    info = await world.ended(run_id)
    assert (info.state, len(info.rounds)) == ("finished", 1)
    assert "reached 0.06" in info.reason


async def test_devices_evaluate_the_new_model(world: World) -> None:
    run_id = await world.start(task(size=4, devices=2))
    trained = await world.cohort(4)
    for client_id in trained:
        await world.report(client_id)
    await world.phase(run_id, "committed")

    async def sampled() -> list[str]:
        found = [c for c in trained if len(world.waker.tickets(c)) == 2]
        return found if len(found) == 2 else []

    sample: list[str] = await world.until(sampled)
    assert world.waker.tickets(sample[0])[1].model_version == 1
    for client_id in sample:
        await world.evaluate(client_id, nth=2)
    info = await world.ended(run_id)
    [only] = info.rounds
    assert only.metrics["device_accuracy"] == pytest.approx(0.5)
    assert (only.metrics["device_examples"], only.metrics["device_reports"]) == (20.0, 2.0)
    assert (only.metrics["device_accuracy_p50"], only.metrics["device_loss_p90"]) == (0.5, 2.0)


# -- clients that are lost


async def test_a_dropout_costs_the_grace_time_only(world: World) -> None:
    run_id = await world.start()
    slow, *fast = await world.cohort(4)
    await world.check_in(slow)
    world.clock.advance(4000)
    for client_id in fast:
        await world.report(client_id)
    await world.phase(run_id, "grace")
    world.clock.advance(6000)  # 1.5 times 4 s
    info = await world.ended(run_id)
    assert await world.weights(run_id) == counted(fast)
    assert info.rounds[0].losses == {"never_reported": 1}


async def test_a_round_with_too_few_reports_is_abandoned_by_name(world: World) -> None:
    run_id = await world.start(task(minimum=3))
    one, two, *_ = await world.cohort(4)
    await world.report(one)
    await world.report(two)
    world.clock.advance(100_000)
    abandoned = await world.phase(run_id, "abandoned")
    assert abandoned.reason == "too_few: 2 reports of at least 3 at the deadline"
    assert abandoned.losses == {"never_checked_in": 2}
    assert await world.weights(run_id) == [0.0] * 16


async def test_a_run_whose_rounds_are_abandoned_fails(world: World) -> None:
    run_id = await world.start(task(rounds=5))
    for number in (1, 2):
        await world.phase(run_id, "collecting", number)
        world.clock.advance(100_000)
    info = await world.ended(run_id)
    assert info.state == "failed"
    assert info.reason.startswith("2 rounds in a row were abandoned")


async def test_clients_that_give_up_are_not_waited_for(world: World) -> None:
    run_id = await world.start(task(minimum=2))
    good, fine, *bad = await world.cohort(4)
    for client_id in bad:
        ticket = await world.ticket(client_id)
        await world.check_in(client_id)
        await world.coordinator.put_metrics(client_id, metrics(ticket.round_id, "data_missing"))
    await world.report(good)
    await world.report(fine)
    info = await world.ended(run_id)  # no clock was advanced
    assert await world.weights(run_id) == counted([good, fine])
    assert info.rounds[0].losses == {"data_missing": 2}


async def test_surplus_clients_are_not_waited_for(world: World) -> None:
    run_id = await world.start(task(size=2, over_selection=2.0))
    cohort = await world.cohort(4)
    for client_id in cohort[:2]:
        await world.report(client_id)
    info = await world.ended(run_id)
    assert info.rounds[0].losses == {"surplus": 2}
    late = await world.check_in(cohort[2])
    assert late == NotNow(Code.ROUND_CLOSED.value, 0)


# -- answers that are lost on their way, and repeats


async def test_a_lost_answer_makes_a_repeat_that_changes_nothing(world: World) -> None:
    run_id = await world.start()
    cohort = await world.cohort(4)
    for client_id in cohort:
        first = await world.check_in(client_id)
        assert first == await world.check_in(client_id)
        for _ in range(3):
            await world.send(client_id, unit(int(client_id[-1])))
    await world.ended(run_id)
    assert await world.weights(run_id) == counted(cohort)


async def test_report_twice_after_the_commit_is_confirmed_and_not_counted(world: World) -> None:
    run_id = await world.start()
    cohort = await world.cohort(4)
    for client_id in cohort:
        await world.report(client_id)
    await world.ended(run_id)
    header = await world.header(cohort[0], unit(int(cohort[0][-1])))
    assert await world.coordinator.begin_report(cohort[0], header) == (64, True)
    assert await world.weights(run_id) == counted(cohort)


async def test_repeated_different_report_is_refused(world: World) -> None:
    await world.start()
    client_id, *_ = await world.cohort(4)
    await world.report(client_id)
    assert await refusal_of(world.send(client_id, unit(9))) is Code.CONFLICTING_REPEAT


async def test_a_broken_upload_is_resumed_where_it_ended(world: World) -> None:
    run_id = await world.start(task(size=1, minimum=1))
    [client_id] = await world.cohort(1)
    await world.check_in(client_id)
    data = unit(int(client_id[-1]))
    header = await world.header(client_id, data)
    assert await world.coordinator.begin_report(client_id, header) == (0, False)
    upload = world.coordinator.put_report(client_id, header.round_id, 0, pieces(data[:40]))
    assert await refusal_of(upload) is Code.WRONG_LENGTH
    assert await world.coordinator.begin_report(client_id, header) == (40, False)
    wrong = world.coordinator.put_report(client_id, header.round_id, 0, pieces(data))
    assert await refusal_of(wrong) is Code.WRONG_OFFSET
    await world.coordinator.put_report(client_id, header.round_id, 40, pieces(data[40:]))
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([client_id])


# -- metrics


async def test_what_an_invocation_cost_is_kept(world: World) -> None:
    run_id = await world.start(task(size=2))
    one, two = await world.cohort(2)
    ticket = await world.ticket(one)
    for client_id in (one, two):
        await world.report(client_id)
    await world.ended(run_id)
    await world.coordinator.put_metrics(one, metrics(ticket.round_id))  # after the round, as usual
    info = await world.runs.show(run_id)
    assert (info.rounds[0].bytes_down, info.rounds[0].bytes_up) == (100, 50)
    [kept] = await world.runs.invocations(run_id)
    assert (kept.client_id, kept.values["timings_ms"]) == (one, {"total": 12.5})


async def test_the_offer_is_what_the_ticket_promised(world: World) -> None:
    await world.start()
    client_id, *_ = await world.cohort(4)
    ticket = await world.ticket(client_id)
    offer = await world.check_in(client_id)
    assert isinstance(offer, Offer)
    assert hashlib.sha256(offer.task).digest() == ticket.task_digest
    assert (offer.deadline_at_ms, offer.report_bytes) == (ticket.not_after_ms, 64)
