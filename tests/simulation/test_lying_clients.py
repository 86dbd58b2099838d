"""Clients that send what they should not: each is refused by name, and in no sum."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from aggregator.store import history
from fedless.protocol.errors import Code
from fedless.protocol.messages import CheckIn
from tests.simulation.world import World, counted, metrics, pieces, refusal_of, task, unit


async def offer_bytes(world: World, client_id: str, data: bytes) -> None:
    """Announces truly what is then sent, whatever it is."""
    await world.check_in(client_id)
    await world.send(client_id, data)


async def test_over_long_upload_is_refused_and_leaves_no_trace(world: World) -> None:
    run_id = await world.start(task(size=1, minimum=1))
    [client_id] = await world.cohort(1)
    await world.check_in(client_id)
    data = unit(int(client_id[-1]))
    header = await world.header(client_id, data)
    await world.coordinator.begin_report(client_id, header)
    upload = world.coordinator.put_report(client_id, header.round_id, 0, pieces(data * 2))
    assert await refusal_of(upload) is Code.WRONG_LENGTH
    await world.send(client_id, data)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([client_id])


async def test_corrupted_upload_is_refused_and_may_be_sent_again(world: World) -> None:
    run_id = await world.start(task(size=2, minimum=1))
    client_id, other = await world.cohort(2)
    await world.check_in(client_id)
    data = unit(int(client_id[-1]))
    header = await world.header(client_id, data)
    await world.coordinator.begin_report(client_id, header)
    upload = world.coordinator.put_report(client_id, header.round_id, 0, pieces(unit(9)))
    assert await refusal_of(upload) is Code.WRONG_DIGEST
    await world.report(client_id)
    await world.report(other)
    await world.ended(run_id)
    assert await world.weights(run_id) == counted([client_id, other])


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (np.nan, Code.NOT_FINITE),
        (np.inf, Code.NOT_FINITE),
        (-np.inf, Code.NOT_FINITE),
        (1e9, Code.OUT_OF_RANGE),
    ],
)
async def test_nan_inf_and_absurd_updates_are_refused(world: World, value: float, code: Code) -> None:
    run_id = await world.start()
    liar, *honest = await world.cohort(4)
    poison = np.zeros(16, "<f4")
    poison[3] = value
    assert await refusal_of(offer_bytes(world, liar, poison.tobytes())) is code
    assert await refusal_of(world.send(liar, poison.tobytes())) is code
    for client_id in honest:
        await world.report(client_id)
    info = await world.ended(run_id)
    assert await world.weights(run_id) == counted(honest)
    assert info.rounds[0].losses == {code.value: 1}


async def test_wrong_headers_are_refused_by_name(world: World) -> None:
    await world.start()
    client_id, *_ = await world.cohort(4)
    header = await world.header(client_id, unit(0))
    begin = world.coordinator.begin_report
    assert await refusal_of(begin(client_id, header)) is Code.WRONG_STATE  # it never checked in
    await world.check_in(client_id)
    for change, code in (
        ({"length_bytes": 60}, Code.WRONG_LENGTH),
        ({"examples": 0}, Code.EXAMPLE_COUNT),
        ({"examples": 1001}, Code.EXAMPLE_COUNT),
        ({"sums": {"correct": 11.0}}, Code.OUT_OF_RANGE),
        ({"round_id": 1}, Code.UNKNOWN_ROUND),
    ):
        assert await refusal_of(begin(client_id, replace(header, **change))) is code
    assert await begin(client_id, header) == (0, False)


async def test_bytes_before_their_header_are_refused(world: World) -> None:
    await world.start()
    client_id, *_ = await world.cohort(4)
    ticket = await world.ticket(client_id)
    await world.check_in(client_id)
    upload = world.coordinator.put_report(client_id, ticket.round_id, 0, pieces(unit(0)))
    assert await refusal_of(upload) is Code.WRONG_STATE


async def test_a_client_outside_the_cohort_is_refused(world: World) -> None:
    await world.start(task(size=2))
    inside, _ = await world.cohort(2)
    ticket = await world.ticket(inside)
    call = world.coordinator.check_in("client-99", CheckIn(ticket.round_id, ticket.nonce))
    assert await refusal_of(call) is Code.NOT_IN_COHORT
    header = await world.header(inside, unit(0))
    assert await refusal_of(world.coordinator.begin_report("client-99", header)) is Code.NOT_IN_COHORT
    upload = world.coordinator.put_report("client-99", ticket.round_id, 0, pieces(unit(0)))
    assert await refusal_of(upload) is Code.NOT_IN_COHORT
    call2 = world.coordinator.put_metrics("client-99", metrics(ticket.round_id))
    assert await refusal_of(call2) is Code.NOT_IN_COHORT


async def test_ticket_of_another_client_is_refused(world: World) -> None:
    await world.start()
    one, two, *_ = await world.cohort(4)
    ticket = await world.ticket(one)
    assert await refusal_of(world.coordinator.check_in(two, CheckIn(ticket.round_id, ticket.nonce))) is (
        Code.TICKET_FOREIGN
    )


async def test_report_after_the_deadline_is_refused(world: World) -> None:
    run_id = await world.start(task(minimum=1))
    late, *others = await world.cohort(4)
    await world.check_in(late)
    await world.report(others[0])
    world.clock.advance(100_000)
    await world.ended(run_id)
    assert await refusal_of(world.send(late, unit(0))) is Code.ROUND_CLOSED
    assert await world.weights(run_id) == counted(others[:1])


async def test_an_upload_that_the_deadline_overtakes_leaves_no_trace(world: World) -> None:
    run_id = await world.start(task(minimum=1))
    late, quick, *_ = await world.cohort(4)
    await world.check_in(late)
    await world.report(quick)
    data, gate = unit(7), asyncio.Event()
    header = await world.header(late, data)
    await world.coordinator.begin_report(late, header)

    async def slowly() -> AsyncIterator[bytes]:
        yield data[:32]
        await gate.wait()
        yield data[32:]

    upload = asyncio.create_task(world.coordinator.put_report(late, header.round_id, 0, slowly()))
    world.clock.advance(100_000)
    await world.ended(run_id)
    gate.set()
    assert await refusal_of(upload) is Code.ROUND_CLOSED
    assert await world.weights(run_id) == counted([quick])


async def test_refusals_are_counted_by_client_and_code(world: World) -> None:
    run_id = await world.start()
    client_id, *_ = await world.cohort(4)
    await world.report(client_id)
    for _ in range(3):
        await refusal_of(world.send(client_id, unit(9)))
    counts = await world.database.run(history.counts)
    assert counts[client_id] == {"reports": 1, "conflicting_repeat": 3}
    events = [event.event for event in await world.database.run(lambda c: history.read(c, run_id, 0))]
    assert events.count("client_refused") == 1, "a client that insists must not fill the log"
