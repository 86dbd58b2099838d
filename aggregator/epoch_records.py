"""Key epochs in memory and in the database: found, saved, ended. `epochs.py` sets them up with this.

A key epoch that has ended stays ended: whoever was about to write more of it is refused by its own transaction.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

import structlog
from sqlalchemy import Connection

from aggregator.interfaces import Clock, Random, Sleep
from aggregator.store import history, masks
from aggregator.store.engine import Database
from aggregator.store.masks import KeyEpoch
from aggregator.tickets import Tickets
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg.messages import EpochShares, Sign, VerifyMember

log = structlog.get_logger()


@dataclass
class LiveEpoch:
    """A key epoch in memory; `changed` is set, and replaced, when there may be something new to say.

    `gave_up`: why clients do not join it, by id, as far as they told since the service's start.
    """

    value: KeyEpoch
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    gave_up: dict[str, Code] = field(default_factory=dict)

    @property
    def is_lost(self) -> bool:
        """Whether too few are left to join, since others gave up."""
        return bool(self.gave_up) and len(self.value.cohort) - len(self.gave_up) < self.value.minimum

    @property
    def told(self) -> str:
        """Why clients did not join it, in words; empty: nobody told."""
        counts = Counter(self.gave_up.values())
        each = (
            f"{times} of {len(self.value.cohort)}: {code.sentence} ({code.value})"
            for code, times in counts.items()
        )
        return "; ".join(each)

    def tell(self) -> None:
        """Wakes everybody who waits for news."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True)
class Signing:
    """The aggregator's signature (Ed25519, ticket key), and whom it accepts as a member."""

    sign: Sign
    verify_member: VerifyMember


class EpochRecords:
    """The fleet's key epochs; those that have not ended are kept in memory."""

    def __init__(
        self,
        database: Database,
        tickets: Tickets,
        signing: Signing,
        *,
        clock: Clock,
        sleep: Sleep,
        random: Random,
        on_step: Callable[[str], None] = lambda _run_id: None,
    ) -> None:
        self._database = database
        self._tickets = tickets
        self._signing = signing
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._on_step = on_step
        self._live: dict[int, LiveEpoch] = {}

    async def find(self, epoch: int) -> LiveEpoch:
        """A key epoch by its number; raises `PeerError` UNKNOWN_ROUND."""
        live = self._live.get(epoch)
        if live is None:
            live = self.adopt(await self._database.run(lambda c: masks.load_epoch(c, epoch)))
        return live

    def adopt(self, value: KeyEpoch) -> LiveEpoch:
        """A key epoch that was just loaded, as it is in memory; one that has ended is not kept there."""
        return LiveEpoch(value) if value.ended_at_ms else self._live.setdefault(value.epoch, LiveEpoch(value))

    async def end(self, live: LiveEpoch, reason: str) -> None:
        """Ends a key epoch: its sealed shares are erased, and nobody opens a slot of it any more."""
        now = self._clock()

        def work(connection: Connection) -> KeyEpoch:
            ended = masks.end_epoch(connection, live.value, reason, now)
            self._note(connection, ended, "key_epoch_ended", reason=reason)
            return ended

        self._drop(live, await self._database.run(work))
        self._on_step(live.value.run_id)
        log.info("key_epoch_ended", epoch=live.value.epoch, reason=reason)

    async def let_go(self, run_id: str) -> None:
        """Drops the run's key epochs that have ended with the run, and tells who waits for them."""
        for live in [live for live in self._live.values() if live.value.run_id == run_id]:
            value = await self._database.run(partial(masks.load_epoch, epoch=live.value.epoch))
            if value.ended_at_ms:
                self._drop(live, value)

    async def close(self) -> None:
        """Ends wake-ups; set-ups go on after the next start."""
        tasks = [task for live in self._live.values() for task in live.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def gave_up(self, client_id: str, epoch: int, code: Code) -> None:
        """A client does not join, for this reason. Raises `PeerError` as `_open`."""
        live = await self._open(client_id, epoch)
        if client_id in live.gave_up:
            return
        now = self._clock()
        await self._database.run(
            lambda c: history.note(
                c,
                live.value.run_id,
                "client_gave_up",
                now,
                round_id=epoch,
                client_id=client_id,
                reason=code.value,
            )
        )
        live.gave_up[client_id] = code
        live.tell()
        self._on_step(live.value.run_id)

    # -- small things

    async def _open(self, client_id: str, epoch: int) -> LiveEpoch:
        live = await self.find(epoch)
        if client_id not in live.value.cohort:
            raise PeerError(Code.NOT_IN_COHORT, "This client was not asked to join the key epoch.")
        if live.value.ended_at_ms:
            raise PeerError(Code.ROUND_CLOSED, f"Key epoch {epoch} has ended: {live.value.reason}.")
        return live

    async def _save(
        self,
        live: LiveEpoch,
        value: KeyEpoch,
        event: str,
        client_id: str = "",
        *,
        members: int = 0,
        shares: EpochShares | None = None,
    ) -> None:
        def work(connection: Connection) -> None:
            if not masks.save_epoch(connection, value):  # the run was stopped meanwhile
                raise PeerError(Code.ROUND_CLOSED, f"Key epoch {value.epoch} has ended.")
            if shares is not None:
                masks.insert_shares(connection, shares)
            fields = {"members": members} if members else {}
            self._note(connection, value, event, client_id, **fields)

        await self._database.run(work)
        live.value = value
        live.tell()
        self._on_step(value.run_id)
        log.info(event, epoch=value.epoch, **({"client": client_id} if client_id else {}))

    def _note(
        self, connection: Connection, value: KeyEpoch, event: str, client_id: str = "", **fields: object
    ) -> None:
        history.note(
            connection,
            value.run_id,
            event,
            self._clock(),
            round_id=value.epoch,
            client_id=client_id,
            **fields,
        )

    def spawn(self, live: LiveEpoch, work: Coroutine[None, None, None]) -> None:
        """Runs a wake-up beside; it ends with the key epoch."""
        task = asyncio.create_task(work)
        live.tasks.add(task)
        task.add_done_callback(live.tasks.discard)

    def _drop(self, live: LiveEpoch, ended: KeyEpoch) -> None:
        live.value = ended
        self._live.pop(ended.epoch, None)
        for task in live.tasks:
            task.cancel()
        live.tell()
