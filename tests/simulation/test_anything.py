"""Lists of operations from hypothesis: requests and answers lost, crashes, lies, a clock that jumps.

Whatever happened, each model must differ from the one before by exactly the reports that were accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from aggregator.store import schema
from fedless.protocol.errors import PeerError
from fedless.protocol.messages import CheckIn
from tests.conftest import LONG
from tests.simulation.world import World, metrics, number_of, pieces, task, unit

CLIENTS = [f"client-{number}" for number in range(4)]
Operation = tuple[str, str, int]

operations = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                ["check in", "announce", "send a part", "send all", "send damage", "lie", "replay", "give up"]
            ),
            st.sampled_from(CLIENTS),
            st.integers(0, 63),
        ),
        st.tuples(st.just("advance"), st.just(""), st.integers(0, 60_000)),
        st.tuples(st.just("jump back"), st.just(""), st.integers(0, 60_000)),
        st.tuples(st.just("crash"), st.just(""), st.just(0)),
    ),
    max_size=25,
)


async def newest(world: World, client_id: str) -> int:
    """How many tickets the client has; 0: it sleeps."""
    return len(world.waker.tickets(client_id))


async def send(world: World, client_id: str, data: bytes, *, whole: bytes, until: int) -> None:
    nth = await newest(world, client_id)
    header = await world.header(client_id, whole, nth)
    offset, complete = await world.coordinator.begin_report(client_id, header)
    if not complete:
        await world.coordinator.put_report(client_id, header.round_id, offset, pieces(data[offset:until]))


async def perform(world: World, operation: Operation) -> None:
    what, client_id, number = operation
    if what == "advance":
        world.clock.advance(number)
    elif what == "jump back":
        world.clock.now_ms -= number
    elif what == "crash":
        await world.restart()
    elif await newest(world, client_id):
        with contextlib.suppress(PeerError):
            await as_client(world, what, client_id, number)


async def as_client(world: World, what: str, client_id: str, number: int) -> None:
    nth, data = await newest(world, client_id), unit(number_of(client_id))
    damaged = bytearray(data)
    damaged[number] ^= 1
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "check in": lambda: world.check_in(client_id, nth),
        "announce": lambda: send(world, client_id, data, whole=data, until=0),
        "send a part": lambda: send(world, client_id, data, whole=data, until=number),
        "send all": lambda: send(world, client_id, data, whole=data, until=64),
        "send damage": lambda: send(world, client_id, bytes(damaged), whole=data, until=64),
        "lie": lambda: send(world, client_id, unit(15), whole=unit(15), until=64),
        "replay": lambda: replay(world, client_id),
        "give up": lambda: give_up(world, client_id),
    }
    await calls[what]()


async def replay(world: World, client_id: str) -> None:
    """An old ticket, and the old report with it."""
    first = world.waker.tickets(client_id)[0]
    await world.coordinator.check_in(client_id, CheckIn(first.round_id, first.nonce))
    await world.send(client_id, unit(number_of(client_id)), nth=1)


async def give_up(world: World, client_id: str) -> None:
    ticket = world.waker.tickets(client_id)[-1]
    await world.coordinator.put_metrics(client_id, metrics(ticket.round_id, "instance_failed"))


async def finish(world: World, run_id: str) -> None:
    """Everybody who can reports, and time goes on, until the run has ended."""
    for _ in range(60):
        if (await world.runs.show(run_id)).state != "running":
            return
        for client_id in CLIENTS:
            for what in ("check in", "send all"):
                await perform(world, (what, client_id, 0))
        world.clock.advance(30_000)
        await asyncio.sleep(0.02)
    raise AssertionError("the run does not end")


def accepted(connection: Connection, round_id: int) -> set[int]:
    query = select(schema.cohort.c.client_id).where(
        schema.cohort.c.round_id == round_id, schema.cohort.c.stage == "reported"
    )
    return {number_of(row.client_id) for row in connection.execute(query)}


def check_models(world: World, connection: Connection, run_id: str) -> None:
    query = select(schema.models).where(schema.models.c.run_id == run_id).order_by(schema.models.c.version)
    models = connection.execute(query).all()
    assert [model.version for model in models] == list(range(len(models)))
    weights = [np.fromfile(world.blobs.path(model.digest), "<f4") for model in models]
    for model, before, after in zip(models[1:], weights, weights[1:], strict=False):
        change, clients = after - before, accepted(connection, model.round_id)
        liars = 1 if change[15] else 0  # a lie that was the first report stands, and counts once
        honest = {number for number in range(4) if change[number]}
        assert honest <= clients
        assert np.isclose(change.sum(), 1.0)
        share = np.round(change * len(clients)).astype(int)
        assert share[:4].max() <= 1, "counted twice"
        assert share[15] == len(clients) - len(honest)
        assert liars == (share[15] > 0)


async def play(operations: list[Operation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            run_id = await world.start(
                task(rounds=2, minimum=2).replace("abandon_limit = 2", "abandon_limit = 9")
            )
            await world.cohort(4)
            for operation in operations:
                await perform(world, operation)
            await finish(world, run_id)
            await world.database.run(lambda c: check_models(world, c, run_id))
        finally:
            await world.close()


@settings(max_examples=40 if LONG else 12, suppress_health_check=[HealthCheck.too_slow])
@given(operations)
@example(
    [("check in", "client-0", 0), ("send all", "client-0", 0), ("crash", "", 0), ("send all", "client-0", 0)]
)
@example([("check in", "client-0", 0), ("lie", "client-0", 0), ("send all", "client-0", 0), ("crash", "", 0)])
@example(
    [
        ("check in", "client-1", 0),
        ("send damage", "client-1", 5),
        ("crash", "", 0),
        ("send all", "client-1", 0),
    ]
)
def test_each_model_holds_each_accepted_report_once(operations: list[Operation]) -> None:
    asyncio.run(play(operations))
