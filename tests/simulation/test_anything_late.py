"""Lists of operations from hypothesis in asynchronous runs: old tickets, kills, repeats, a clock that jumps.

Client number i reports the i-th unit vector: each model differs from the one before by exactly the reports that were
counted in its round, each with the weight of its age, and no ticket is ever counted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from aggregator.members import Stage
from aggregator.store import rounds, schema
from fedless.protocol.errors import PeerError
from fedless.protocol.messages import CheckIn
from tests.conftest import LONG
from tests.simulation.world import World, metrics, number_of, pieces, task, unit

CLIENTS = [f"client-{number}" for number in range(4)]
BUFF = 'strategy = "fedbuff"\nstrategy_options = {buffer = 2, tolerance = 2}'
ROUNDS = 4
Operation = tuple[str, str, int]
"""What, who, and which of the client's tickets (from the newest), or how many ms."""

operations = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["check in", "send all", "send all", "send a part", "give up"]),
            st.sampled_from(CLIENTS),
            st.integers(0, 2),
        ),
        st.tuples(st.just("advance"), st.just(""), st.integers(0, 60_000)),
        st.tuples(st.just("crash"), st.just(""), st.just(0)),
    ),
    max_size=30,
)


async def perform(world: World, operation: Operation) -> None:
    what, client_id, number = operation
    if what == "advance":
        world.clock.advance(number)
    elif what == "crash":
        await world.restart()
    elif tickets := world.waker.tickets(client_id):
        nth = max(1, len(tickets) - number)
        with contextlib.suppress(PeerError):
            await as_client(world, what, client_id, nth)


async def as_client(world: World, what: str, client_id: str, nth: int) -> None:
    ticket = world.waker.tickets(client_id)[nth - 1]
    if what == "give up":
        await world.coordinator.put_metrics(client_id, metrics(ticket.round_id, "instance_failed"))
        return
    await world.coordinator.check_in(client_id, CheckIn(ticket.round_id, ticket.nonce))
    data = unit(number_of(client_id))
    if what == "send all":
        await world.send(client_id, data, nth)
    elif what == "send a part":
        header = await world.header(client_id, data, nth)
        offset, complete = await world.coordinator.begin_report(client_id, header)
        if not complete:
            await world.coordinator.put_report(client_id, ticket.round_id, offset, pieces(data[offset:40]))


async def finish(world: World, run_id: str) -> None:
    """Everybody reports on whatever ticket is open, and time goes on, until the run has ended."""
    for _ in range(80):
        if (await world.runs.show(run_id)).state != "running":
            return
        for client_id in CLIENTS:
            for number in (2, 1, 0):
                await perform(world, ("send all", client_id, number))
        world.clock.advance(30_000)
        await asyncio.sleep(0.02)
    raise AssertionError("the run does not end")


def check_models(world: World, connection: Connection, run_id: str) -> None:
    query = select(schema.models).where(schema.models.c.run_id == run_id).order_by(schema.models.c.version)
    models = connection.execute(query).all()
    assert [model.version for model in models] == list(range(len(models)))
    weights = [np.fromfile(world.blobs.path(model.digest), "<f4") for model in models]
    for model, before, after in zip(models[1:], weights, weights[1:], strict=False):
        round_ = rounds.load(connection, model.round_id)
        expected = np.zeros(world.parameters)
        counted = [m for m in round_.state.members.values() if m.stage is Stage.REPORTED]
        for member in counted:
            base = round_.terms.model_version if member.origin is None else member.origin.model_version
            behind = round_.terms.model_version - base
            assert 0 <= behind <= 2, "older than the tolerance"
            expected[number_of(member.client_id)] = 1 / math.sqrt(1 + behind) / len(counted)
        np.testing.assert_allclose(after - before, expected, atol=1e-6)


def check_tickets(connection: Connection) -> None:
    """A ticket has one nonce, whichever rounds had it."""
    query = select(schema.cohort.c.nonce).where(schema.cohort.c.stage == "reported")
    times = Counter(row.nonce for row in connection.execute(query))
    assert max(times.values(), default=0) <= 1, "counted twice"


async def play(operations: list[Operation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            toml = task(rounds=ROUNDS, top=BUFF).replace("abandon_limit = 2", "abandon_limit = 9")
            run_id = await world.start(toml)
            await world.cohort(4)
            for operation in operations:
                await perform(world, operation)
            await finish(world, run_id)
            await world.database.run(lambda c: check_models(world, c, run_id))
            await world.database.run(check_tickets)
        finally:
            await world.close()


@settings(max_examples=20 if LONG else 6, suppress_health_check=[HealthCheck.too_slow])
@given(operations)
@example([("send all", c, 0) for c in CLIENTS] + [("crash", "", 0)] + [("send all", c, 1) for c in CLIENTS])
@example(
    [
        ("send a part", "client-3", 0),
        ("send all", "client-0", 0),
        ("send all", "client-1", 0),
        ("crash", "", 0),
        ("send all", "client-3", 0),
        ("crash", "", 0),
        ("send all", "client-3", 0),
    ]
)
def test_each_late_report_counts_once_with_its_weight(operations: list[Operation]) -> None:
    asyncio.run(play(operations))
