"""The whole aggregator in one process: real core, real SQLite, real files; fake clock, fake waker, fake fleet.

Client number i reports the i-th unit vector, so the model itself says who was counted, and how often.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from aggregator.blobs import Blobs
from aggregator.coordinator import Coordinator
from aggregator.evaluation import Evaluation
from aggregator.interfaces import ClientRecord, Receipt
from aggregator.masked import MaskedMode
from aggregator.means import Means
from aggregator.returns import Returns
from aggregator.runs import News, Runs
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from aggregator.uploads import Spool
from fedless.protocol import signed, wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.manifest import Manifest, Model, Tensor
from fedless.protocol.messages import (
    CheckIn,
    Encoding,
    InvocationMetrics,
    Mode,
    NotNow,
    Offer,
    ReportHeader,
    SignedTicket,
    Ticket,
)

FLEET = "test-fleet"
KEY = bytes(range(32))
PARAMETERS = 16
BUNDLE = b"a bundle that only the fake evaluator reads"
TASK = """
name = "unit-vectors"
function = "unit-vectors.bundle"
mode = "{mode}"
rounds = {rounds}
{top}
[cohort]
size = {size}
minimum_reports = {minimum}
over_selection = {over_selection}
wait_s = {wait_s}
[round]
deadline_s = 100
abandon_limit = 2
[client]
max_examples = 1000
[evaluation]
central_every = 1
devices = {devices}
[stop]
{stop}
"""


def task(
    rounds: int = 1,
    size: int = 4,
    minimum: int = 2,
    over_selection: float = 1.0,
    *,
    devices: int = 0,
    top: str = "",
    stop: str = "",
    wait_s: int = 60,
    mode: str = "plain",
) -> str:
    return TASK.format(**locals())


class FakeClock:
    """Time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000
        self._sleepers: list[tuple[int, asyncio.Event]] = []

    def __call__(self) -> int:
        return self.now_ms

    def sleep(self, ms: int) -> Awaitable[None]:
        """Waits from this moment on, not from when a task begins to wait for it: time may pass between."""
        done = asyncio.Event()
        self._sleepers.append((self.now_ms + ms, done))
        return self._rise(done)

    async def _rise(self, done: asyncio.Event) -> None:
        await done.wait()

    @property
    def sleepers(self) -> int:
        return len(self._sleepers)

    def advance(self, ms: int) -> None:
        self.now_ms += ms
        due = [done for at, done in self._sleepers if at <= self.now_ms]
        self._sleepers = [(at, done) for at, done in self._sleepers if at > self.now_ms]
        for done in due:
            done.set()


class FakeWaker:
    """Keeps what was sent; `broken` says that the broker is away."""

    def __init__(self) -> None:
        self.sent: dict[str, list[bytes]] = {}
        self.announced: list[bytes] = []
        self.broken = False

    async def wake(self, client_id: str, signed_ticket: bytes, deadline_ms: int) -> Receipt:
        if self.broken:
            return Receipt(delivered=False, detail="the broker is away")
        self.sent.setdefault(client_id, []).append(signed_ticket)
        return Receipt(delivered=True)

    async def announce(self, signed_news: bytes) -> None:
        self.announced.append(signed_news)

    def tickets(self, client_id: str) -> list[Ticket]:
        """The client's verified tickets, each once, in the order of their coming."""
        found: dict[bytes, Ticket] = {}
        for data in self.sent.get(client_id, []):
            content = signed.verify_ticket(wire.signed_ticket_from_bytes(data), [signed.signing_key(KEY)])
            found[content] = wire.ticket_from_bytes(content)
        return list(found.values())


class FakeFleet:
    """As many clients as it is told."""

    def __init__(self, count: int) -> None:
        self.records = [ClientRecord(f"client-{number}", online=True) for number in range(count)]

    async def eligible(self) -> Sequence[ClientRecord]:
        return self.records


class FakeEvaluator:
    """Knows one bundle; the accuracy of a model is the mean of its weights."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.parameters = PARAMETERS
        self.before: Callable[[], Awaitable[Any]] | None = None

    def check(self, bundle_digest: bytes) -> Manifest:
        self._blobs.path(bundle_digest)
        tensor = Tensor("w", (self.parameters,), 0)
        model = Model(self.parameters, 8, "mse", "0" * 64, (tensor,), (), ())
        return Manifest("unit-vectors", 1, model=model)

    async def evaluate(self, bundle_digest: bytes, model_digest: bytes, test_set_digest: bytes) -> Evaluation:
        if self.before is not None:
            await self.before()
        weights = np.fromfile(self._blobs.path(model_digest), "<f4")
        return Evaluation(100, {"accuracy": float(weights.mean()), "loss": 0.5})


def sign(content: bytes) -> SignedTicket:
    return signed.sign_ticket(content, KEY)


def unit(number: int, size: int = PARAMETERS) -> bytes:
    vector = np.zeros(size, "<f4")
    vector[number] = 1.0
    return vector.tobytes()


async def pieces(data: bytes, size: int = 20) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@dataclass
class World:
    """One aggregator on one state directory; `restart` is a kill -9 and a new start."""

    folder: Path
    count: int = 4
    clock: FakeClock = field(default_factory=FakeClock)
    waker: FakeWaker = field(default_factory=FakeWaker)
    parameters: int = PARAMETERS
    beside: dict[str, float] = field(default_factory=dict)
    url: str = ""
    DATABASE: ClassVar[type[Database]] = Database
    EVALUATOR: ClassVar[type[FakeEvaluator]] = FakeEvaluator
    PATIENCE_S: ClassVar[float] = 20.0

    def __post_init__(self) -> None:
        self.fleet = FakeFleet(self.count)
        self._random = np.random.default_rng(1)
        self._open()

    def _open(self) -> None:
        self.database = self.DATABASE.open(self.url or f"sqlite:///{self.folder / 'fedless.db'}")
        self.blobs = Blobs(self.folder / "blobs")
        self.spool = Spool(self.folder / "spool")
        self.evaluator = self.EVALUATOR(self.blobs)
        self.evaluator.parameters = self.parameters
        news = News()
        outside: dict[str, Any] = {"clock": self.clock, "sleep": self.clock.sleep}
        tickets = Tickets(self.database, self.waker, sign, fleet=FLEET, random=self._random.bytes, **outside)
        modes = self.modes(tickets, {**outside, "on_step": news.tell})
        self.coordinator = Coordinator(
            self.database, self.spool, tickets, on_step=news.tell, masked=modes, **outside
        )
        self.returns = Returns(self.database, tickets, **outside)
        means = Means(
            database=self.database,
            blobs=self.blobs,
            coordinator=self.coordinator,
            tickets=tickets,
            fleet=self.fleet,
            evaluator=self.evaluator,
            random=self._random.bytes,
            on_step=news.tell,
            masked=modes,
            **outside,
        )
        self.runs = Runs(means, self.spool, news)

    def modes(self, _tickets: Tickets, _outside: dict[str, Any]) -> dict[Mode, MaskedMode]:
        """Masked modes; see `masked_world.py`."""
        return {}

    async def start(self, toml: str | None = None, test_set: bytes | None = b"a test set") -> str:
        bundle, _ = await self.blobs.put_bytes(BUNDLE)
        initial, _ = await self.blobs.put_bytes(np.zeros(self.parameters, "<f4").tobytes())
        test = (await self.blobs.put_bytes(test_set))[0] if test_set else None
        return (await self.runs.start(toml or task(), bundle, initial, test)).run_id

    async def crash(self) -> None:
        """What a kill -9 leaves: the state directory. Nothing is told to anybody."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for pending in tasks:
            pending.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.database.close()

    def reopen(self) -> None:
        """Starts again on the same state directory; `resume_all` is still to come."""
        self._open()

    async def restart(self) -> None:
        await self.crash()
        self.reopen()
        await self.runs.resume_all()

    async def close(self) -> None:
        await self.returns.close()
        await self.runs.close()
        self.database.close()

    async def until(self, holds: Callable[[], Awaitable[Any]], what: str = "it") -> Any:
        """The first true answer; the threads of the core take real time, so this asks again."""
        async with asyncio.timeout(self.PATIENCE_S):
            while not (answer := await holds()):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.002)
            return answer

    async def asleep(self, count: int = 1) -> None:
        """Until so many are waiting for the clock."""

        async def waiting() -> bool:
            return self.clock.sleepers >= count

        await self.until(waiting)

    # -- clients

    async def ticket(self, client_id: str, nth: int = 1) -> Ticket:
        """The client's nth ticket, as soon as it came."""

        async def came() -> Ticket | None:
            found = self.waker.tickets(client_id)
            return found[nth - 1] if len(found) >= nth else None

        ticket: Ticket = await self.until(came)
        return ticket

    async def cohort(self, size: int, round_id: int | None = None) -> list[str]:
        """Who has a ticket of the newest (or this) round, as soon as so many have."""

        async def woken() -> list[str] | None:
            newest = {
                record.client_id: tickets[-1].round_id
                for record in self.fleet.records
                if (tickets := self.waker.tickets(record.client_id))
            }
            wanted = round_id or max(newest.values(), default=0)
            found = [client_id for client_id, last in newest.items() if last == wanted]
            return found if len(found) >= size else None

        found: list[str] = await self.until(woken)
        return found

    async def check_in(self, client_id: str, nth: int = 1) -> Offer | NotNow:
        ticket = await self.ticket(client_id, nth)
        return await self.coordinator.check_in(client_id, CheckIn(ticket.round_id, ticket.nonce))

    async def header(self, client_id: str, data: bytes, nth: int = 1, examples: int = 10) -> ReportHeader:
        ticket = await self.ticket(client_id, nth)
        digest = hashlib.sha256(data).digest()
        sums = {"loss": 2.0 * examples, "correct": float(examples // 2)}
        sums |= {name: value * examples for name, value in self.beside.items()}
        return ReportHeader(ticket.round_id, Encoding.FLOAT32, len(data), digest, examples, sums)

    async def send(self, client_id: str, data: bytes, nth: int = 1, examples: int = 10) -> None:
        """Announces and uploads from where the aggregator is."""
        header = await self.header(client_id, data, nth, examples)
        offset, complete = await self.coordinator.begin_report(client_id, header)
        if not complete:
            await self.coordinator.put_report(client_id, header.round_id, offset, pieces(data[offset:]))

    async def report(self, client_id: str, nth: int = 1, examples: int = 10) -> None:
        """A whole pass of an honest client."""
        await self.check_in(client_id, nth)
        await self.send(client_id, unit(number_of(client_id), self.parameters), nth, examples)

    async def evaluate(self, client_id: str, nth: int, examples: int = 10) -> None:
        await self.check_in(client_id, nth)
        await self.coordinator.begin_report(client_id, await self.header(client_id, b"", nth, examples))

    # -- what came of it

    async def ended(self, run_id: str) -> Any:
        async def over() -> Any:
            info = await self.runs.show(run_id)
            return info if info.state != "running" else None

        return await self.until(over)

    async def phase(self, run_id: str, wanted: str, number: int = 1) -> Any:
        """The training round of this number, as soon as it is in this phase."""

        async def reached() -> Any:
            rounds = [r for r in (await self.runs.show(run_id)).rounds if r.number == number]
            return rounds[0] if rounds and rounds[0].state == wanted else None

        return await self.until(reached)

    async def weights(self, run_id: str) -> list[float]:
        info = await self.runs.show(run_id)
        found: list[float] = np.fromfile(self.blobs.path(info.model_digest), "<f4").tolist()
        return found

    async def log(self, run_id: str) -> list[str]:
        return [event.event async for event in self.runs.watch(run_id)]


def number_of(client_id: str) -> int:
    return int(client_id.rpartition("-")[2])


def counted(clients: Sequence[str]) -> list[float]:
    """The model of one round in which exactly these clients were counted, each with the same weight."""
    vector = np.zeros(PARAMETERS)
    for client_id in clients:
        vector[number_of(client_id)] = 1.0 / len(clients)
    found: list[float] = vector.astype(np.float32).tolist()
    return found


KNOWN = {"loss": 2.0, "correct": 0.5, "normalizer": 5.0, "fair_weight": 4.0, "clipped": 0.0}
KNOWN |= {"global_loss": 3.0, "global_correct": 0.25}
"""What a masked client says of itself, by the names that encodings ask for."""


def masked_update(number: int, dimension: int, size: int = PARAMETERS) -> np.ndarray:
    """The unit vector, and behind it, where a control variate's change is asked for, -0.5 times the same."""
    one = np.frombuffer(unit(number, size), "<f4")
    return np.concatenate([one, np.float32(-0.5) * one])[:dimension]


def metrics(round_id: int, outcome: str = "reported") -> InvocationMetrics:
    return InvocationMetrics(round_id, "cold", {"total": 12.5}, 100, 50, 40.0, 60.0, 20.0, outcome)


async def refusal_of(call: Awaitable[object]) -> Code:
    """The code with which a call is refused."""
    with pytest.raises(PeerError) as refusal:
        await call
    return refusal.value.code
