"""The whole aggregator in pairwise mode with clients that serve by themselves: real SQLite and files, fake time.

`kill_after` is a kill -9 right behind the transaction that records an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection, func, select

from aggregator.epochs import KeyEpochs, Signing
from aggregator.masked import MaskedMode, Pairwise
from aggregator.pairwise import PairwiseRounds
from aggregator.store import masks
from aggregator.store.engine import Database
from aggregator.store.masks import KeyEpoch
from aggregator.store.schema import events
from aggregator.tickets import Tickets
from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg.messages import Member
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_fleet import aggregator_sign
from tests.simulation.masked_client import MaskedClient
from tests.simulation.world import World, number_of, task

T = TypeVar("T")
SETUP_MS, UNMASK_MS, DEADLINE_MS = 60_000, 50_000, 100_000


def masked_task(
    rounds: int = 1,
    size: int = 8,
    minimum: int = 0,
    devices: int = 0,
    abandon_limit: int = 2,
    secagg: str = "",
    wait_s: int = 60,
) -> str:
    """A task in pairwise mode."""
    plain = task(rounds, size, minimum, mode="pairwise", devices=devices, wait_s=wait_s)
    plain = plain.replace("abandon_limit = 2", f"abandon_limit = {abandon_limit}")
    return f"{plain}\n[secagg]\nsetup_s = {SETUP_MS // 1000}\nunmask_s = {UNMASK_MS // 1000}\n{secagg}"


class Killable(Database):
    """A database whose process dies right after an event was recorded for the nth time: nobody hears of it."""

    kill_after: tuple[str, int] | None = None
    killed: asyncio.Event

    async def run(self, work: Callable[[Connection], T]) -> T:
        await self._alive()
        result = await super().run(work)
        if self.kill_after is not None and not self.killed.is_set():
            event, times = self.kill_after
            if await super().run(lambda c: recorded(c, event)) >= times:
                self.killed.set()
        await self._alive()
        return result

    async def _alive(self) -> None:
        if self.kill_after is not None and self.killed.is_set():
            await asyncio.Event().wait()


def recorded(connection: Connection, event: str) -> int:
    """How often an event is in the logs of all runs."""
    query = select(func.count()).select_from(events).where(events.c.event == event)
    return int(connection.scalar(query) or 0)


@dataclass
class MaskedWorld(World):
    """A world in pairwise mode; its clients serve by themselves."""

    count: int = 8
    DATABASE = Killable
    PATIENCE_S = 60.0

    def __post_init__(self) -> None:
        self.revoked: set[str] = set()
        self.kill: tuple[str, int] | None = None
        super().__post_init__()
        self.clients = [MaskedClient(self, record.client_id) for record in self.fleet.records]

    def modes(self, tickets: Tickets, outside: dict[str, Any]) -> dict[Mode, MaskedMode]:
        assert isinstance(self.database, Killable)
        self.database.killed = asyncio.Event()
        self.database.kill_after = self.kill
        signing = Signing(aggregator_sign, self.verify_member)
        self.epochs = KeyEpochs(self.database, tickets, signing, random=self._random.bytes, **outside)
        self.rounds = PairwiseRounds(self.database, self.epochs, tickets, signing, **outside)
        return {Mode.PAIRWISE: Pairwise(self.epochs, self.rounds, self._random.bytes)}

    def verify_member(self, certificate: bytes, _at_ms: int) -> Member:
        """What the registrar does with real certificates."""
        name, _, public = certificate.partition(b"\x00")
        role, _, client_id = name.decode().partition("/")
        if client_id in self.revoked:
            raise PeerError(Code.CERTIFICATE_REVOKED)
        return Member(client_id, role == "device", crypto.p256_public(public))

    async def restart(self) -> None:
        await super().restart()
        self.launch()

    async def close(self) -> None:
        for each in self.clients:
            each.go()
        tasks = [each.task for each in self.clients if each.task is not None]
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        await self.epochs.close()
        await super().close()
        assert [f for f in failures if isinstance(f, Exception)] == [], "a client broke down"

    def launch(self) -> None:
        """Every client that did not leave serves (again)."""
        for each in self.clients:
            each.launch()

    async def begin(self, toml: str | None = None) -> str:
        """A run with serving clients."""
        run_id = await self.start(toml or masked_task())
        self.launch()
        return run_id

    def kill_after(self, event: str, times: int) -> None:
        """Orders a kill -9 right behind the transaction that records this event for the nth time."""
        assert isinstance(self.database, Killable)
        self.kill = self.database.kill_after = (event, times)

    async def die(self) -> None:
        """Waits for the kill that was ordered, and starts again."""
        assert isinstance(self.database, Killable)
        assert self.kill is not None
        event, times = self.kill
        async with asyncio.timeout(self.PATIENCE_S):
            await self.database.killed.wait()
        self.kill = None
        await self.restart()
        assert await self.counted(event) >= times

    async def happened(self, event: str, times: int = 1) -> None:
        """As soon as an event is recorded so often."""

        async def often() -> bool:
            return await self.database.run(lambda c: recorded(c, event)) >= times

        await self.until(often, event)

    async def counted(self, event: str) -> int:
        return await self.database.run(lambda c: recorded(c, event))

    async def pass_time(self, ms: int) -> None:
        """Lets time pass in front of somebody who waits for it."""
        await self.asleep()
        self.clock.advance(ms)

    async def masked(self, run_id: str) -> list[ServerRound]:
        """All masked rounds of a run, oldest first."""

        def work(connection: Connection) -> list[ServerRound]:
            found = []
            for epoch in key_epochs(connection, run_id):
                found += masks.masked_of_epoch(connection, epoch.epoch)
            return found

        return await self.database.run(work)

    async def key_epochs(self, run_id: str) -> list[KeyEpoch]:
        return await self.database.run(lambda c: key_epochs(c, run_id))

    async def shared(self, run_id: str, clients: Sequence[str], rounds: int = 1) -> None:
        """The model is that of rounds in which exactly these clients were counted, with the same weight."""
        expected = np.zeros(self.parameters)
        for client_id in clients:
            expected[number_of(client_id)] = rounds / len(clients)
        np.testing.assert_allclose(await self.weights(run_id), expected, atol=2e-6)

    def nothing_revealed(self, round_: ServerRound) -> None:
        """No list of survivors was signed, no share was asked for."""
        assert round_.request is None
        assert round_.responses == ()
        assert round_.result is not None
        assert (round_.result.alive, round_.result.sum_digest) == (b"", b"")


def key_epochs(connection: Connection, run_id: str) -> list[KeyEpoch]:
    """All key epochs of a run, oldest first."""
    table = masks.key_epochs
    query = select(table.c.epoch).where(table.c.run_id == run_id).order_by(table.c.epoch)
    return [masks.load_epoch(connection, row.epoch) for row in connection.execute(query)]
