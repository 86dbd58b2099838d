"""Helper mode through the real core, the real client code and the real helper: sums, dropouts, troubles, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.masked import MaskedMode
from aggregator.tickets import Tickets
from fedless.protocol.errors import Code
from fedless.protocol.messages import CheckIn, Kind, Mode
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest
from tests.simulation.helper_world import CLIENTS, UNMASK_MS, Certified, HelperWorld, helper_task, mean_of
from tests.simulation.world import World, refusal_of, task


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HelperWorld]:
    made = HelperWorld(tmp_path)
    yield made
    await made.close()


async def test_the_model_is_the_mean_of_exactly_those_who_reported(world: HelperWorld) -> None:
    run_id = await world.start(helper_task())
    cohort = await world.cohort(CLIENTS)
    counted = cohort[1:9]
    await world.opened(cohort[0])  # checks in, and is not heard of again
    for client_id in counted:
        await world.take_part(client_id)
    info = await world.ended(run_id)
    assert (info.state, await world.mean(run_id)) == ("finished", mean_of(counted))
    (round_,) = info.rounds
    assert (round_.mode, round_.reported, round_.dropouts) == ("helper", 8, 1)
    assert round_.metrics["train_loss"] == pytest.approx(2.0, abs=1e-5)
    assert round_.metrics["train_examples"] == 80
    assert world.calls.asked == [counted]


async def test_fewer_than_the_minimum_at_the_deadline_and_the_helper_is_not_asked(world: HelperWorld) -> None:
    run_id = await world.start(helper_task())
    for client_id in (await world.cohort(CLIENTS))[:7]:
        await world.take_part(client_id)
    world.clock.advance(100_000)
    round_ = await world.phase(run_id, "abandoned")
    assert round_.reason == "too_few: 7 reports of at least 8 at the deadline"
    assert world.calls.asked == []


async def test_devices_evaluate_the_model_in_helper_mode(world: HelperWorld) -> None:
    run_id = await world.start(helper_task(devices=8))
    for client_id in (await world.cohort(CLIENTS))[:8]:
        await world.take_part(client_id)

    async def both() -> list[str]:
        return [i for i in world.certified if len(world.waker.tickets(i)) == 2]

    await world.until(both)
    for client_id in (await world.cohort(CLIENTS))[:8]:
        assert (await world.ticket(client_id, 2)).kind is Kind.EVALUATE
        await world.take_part(client_id, 2)
    info = await world.ended(run_id)
    metrics = info.rounds[0].metrics
    assert metrics["device_loss"] == pytest.approx(2.0, abs=1e-5)
    assert metrics["device_accuracy"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["device_reports"] == 8


async def test_a_helper_that_is_away_is_asked_again(world: HelperWorld) -> None:
    world.calls.away = 3
    run_id = await world.start(helper_task())
    counted = (await world.cohort(CLIENTS))[:8]
    for client_id in counted:
        await world.take_part(client_id)

    async def said() -> str:
        return str((await world.runs.show(run_id)).reason)

    assert await world.until(said) == "waits for the helper: helper_unreachable: UNAVAILABLE: nobody listens."
    info = await world.ended_in_time(run_id)
    assert (info.state, info.reason) == ("finished", "")
    assert await world.mean(run_id) == mean_of(counted)
    assert "helper_waited_for" in await world.log(run_id)


async def test_a_helper_that_stays_away_abandons_the_round_by_name(world: HelperWorld) -> None:
    world.calls.away = 10_000
    run_id = await world.start(helper_task())
    for client_id in (await world.cohort(CLIENTS))[:8]:
        await world.take_part(client_id)
    began = world.clock.now_ms

    async def abandoned() -> str:
        (round_, *_) = (await world.runs.show(run_id)).rounds
        return str(round_.reason)

    assert await world.pass_time_until(abandoned) == "helper_unreachable: UNAVAILABLE: nobody listens."
    assert world.clock.now_ms - began <= UNMASK_MS + 10_000


async def test_a_lost_answer_is_asked_for_again_and_is_the_same(world: HelperWorld) -> None:
    world.calls.answers_lost = 2
    run_id = await world.start(helper_task())
    counted = (await world.cohort(CLIENTS))[:8]
    for client_id in counted:
        await world.take_part(client_id)
    await world.ended_in_time(run_id)
    assert await world.mean(run_id) == mean_of(counted)
    assert world.calls.asked == [counted] * 3


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_kill_before_and_after_the_helper_answered(world: HelperWorld, moment: str) -> None:
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    setattr(world.calls, moment, hang)
    run_id = await world.start(helper_task())
    counted = (await world.cohort(CLIENTS))[:8]
    for client_id in counted:
        await world.take_part(client_id)
    await reached.wait()
    setattr(world.calls, moment, None)
    await world.restart()
    await world.ended(run_id)
    assert await world.mean(run_id) == mean_of(counted)
    assert all(asked == counted for asked in world.calls.asked)


async def test_restart_after_each_report(world: HelperWorld) -> None:
    run_id = await world.start(helper_task())
    counted = (await world.cohort(CLIENTS))[:8]
    for client_id in counted:
        await world.take_part(client_id)
        await world.restart()
    await world.ended(run_id)
    assert await world.mean(run_id) == mean_of(counted)


@pytest.mark.parametrize("killed", [False, True])
async def test_reports_that_the_helper_refuses_are_left_out_by_name(world: HelperWorld, killed: bool) -> None:
    run_id = await world.start(helper_task(size=10, minimum=8))
    cohort = await world.cohort(CLIENTS)
    world.denied.write_text(f"{cohort[2]}\n{cohort[5]}  # lost\n")
    reached = asyncio.Event()

    async def hang() -> None:
        if len(world.calls.asked) == (1 if killed else -1):  # the second question: refusals are written down
            reached.set()
            await asyncio.Event().wait()

    world.calls.before = hang
    for client_id in cohort:
        await world.take_part(client_id)
    if killed:
        await reached.wait()
        world.calls.before = None
        await world.restart()
    info = await world.ended(run_id)
    counted = [client_id for client_id in cohort if client_id not in {cohort[2], cohort[5]}]
    assert await world.mean(run_id) == mean_of(counted)
    assert world.calls.asked == [cohort, counted]
    assert info.rounds[0].losses == {Code.CERTIFICATE_REVOKED.value: 2}
    assert info.rounds[0].reported == 8
    assert (await world.log(run_id)).count("report_left_out") == 2


async def test_functions_whose_certificates_ended_with_the_round_are_counted(world: HelperWorld) -> None:
    run_id = await world.start(helper_task(size=10, minimum=10))
    cohort = await world.cohort(CLIENTS)
    deadline_ms = (await world.opened(cohort[0])).deadline_at_ms
    for client_id in cohort[:2]:
        world.certified[client_id] = Certified.function(world.authority, client_id, deadline_ms)
    for client_id in cohort[:9]:
        await world.take_part(client_id)
    world.clock.advance(deadline_ms - world.clock.now_ms - 5_000)
    world.calls.away = 6
    await world.take_part(cohort[9])
    await world.ended_in_time(run_id)
    assert world.clock.now_ms > deadline_ms
    assert world.calls.asked == [cohort]
    assert await world.mean(run_id) == mean_of(cohort)


async def test_certificates_that_ended_long_ago_do_not_count_whatever_deadline_is_named(
    world: HelperWorld,
) -> None:
    await world.start(helper_task())
    cohort = await world.cohort(CLIENTS)
    opened = await world.opened(cohort[0])
    heads = tuple(world.mask(client_id, opened)[0] for client_id in cohort)
    world.clock.advance(31 * 86_400_000)
    answer = await world.calls.close(CloseRequest(opened, heads), 1000)
    assert isinstance(answer, RefusedReports)
    assert answer.reasons == dict.fromkeys(cohort, Code.CERTIFICATE_EXPIRED)


async def test_too_few_without_the_refused_ones_is_abandoned_by_name(world: HelperWorld) -> None:
    run_id = await world.start(helper_task())
    cohort = (await world.cohort(CLIENTS))[:8]
    world.denied.write_text(f"{cohort[0]}\n")
    for client_id in cohort:
        await world.take_part(client_id)
    round_ = await world.phase(run_id, "abandoned")
    assert round_.reason == "too_few: 7 reports of at least 8; the helper refused: certificate_revoked 1."
    assert round_.losses[Code.CERTIFICATE_REVOKED.value] == 1


async def test_a_run_in_helper_mode_without_a_helper_is_refused_at_its_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        assert await refusal_of(world.start(task(mode="helper"))) is Code.CONFIG_INVALID
        assert await world.runs.list() == []
    finally:
        await world.close()


class WithoutHelper(HelperWorld):
    """The same fleet, after [helper] was taken out of the settings."""

    gone = False

    def modes(self, tickets: Tickets, outside: dict[str, object]) -> dict[Mode, MaskedMode]:
        return {} if self.gone else super().modes(tickets, outside)


async def test_a_run_whose_helper_left_the_settings_fails_and_never_goes_on_in_the_clear(
    tmp_path: Path,
) -> None:
    world = WithoutHelper(tmp_path)
    try:
        run_id = await world.start(helper_task())
        await world.cohort(CLIENTS)
        await world.crash()
        world.gone = True
        world.reopen()
        await world.runs.resume_all()
        info = await world.ended(run_id)
        assert info.state == "failed"
        assert "has no helper" in info.reason
        assert info.rounds[0].state == "abandoned"
    finally:
        await world.close()


async def test_the_offer_is_the_same_after_a_restart(world: HelperWorld) -> None:
    await world.start(helper_task())
    first, *_ = await world.cohort(CLIENTS)
    ticket = await world.ticket(first)
    offers = []
    for _ in range(2):
        offers.append(await world.coordinator.check_in(first, CheckIn(ticket.round_id, ticket.nonce)))
        await world.restart()
    assert offers[0] == offers[1]
