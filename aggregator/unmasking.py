"""One cohort of a round in pairwise mode, from its closed reports to its sum: M6 once, the holders' M7, the end.

A thin driver of `fedless.protocol.secagg.server`: store, then say. Nothing of a cohort is revealed before its list of
survivors is signed, and only one list ever is. `pairwise.py` drives all cohorts of a round with this; one that cannot
be opened stops no other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
from sqlalchemy import Connection

from aggregator.epochs import KeyEpochs, LiveEpoch, Signing
from aggregator.interfaces import Clock, Sleep
from aggregator.ledger import add_server_noise
from aggregator.members import Stage, Terms
from aggregator.round import Round
from aggregator.store import history, masks
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind
from fedless.protocol.prg import Words
from fedless.protocol.secagg import codec, server
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.messages import MaskedReport
from fedless.protocol.secagg.recovery import Recovery
from fedless.protocol.secagg.ring import Decoded
from fedless.protocol.secagg.server import Reported, ServerRound

PROMPT_MS = 3_000
"""Reporters wait for the unmask request; only if too few of them answer in this time the others are woken."""
TIMER_SLICE_MS = 500
log = structlog.get_logger()


@dataclass(frozen=True)
class Change:
    """What to write in the transaction of a larger step, and what to do once that has committed."""

    record: Callable[[Connection, Terms], None]
    then: Callable[[], None]


def all_of(changes: Sequence[Change]) -> Change:
    """Several changes as one."""

    def record(connection: Connection, terms: Terms) -> None:
        for change in changes:
            change.record(connection, terms)

    def then() -> None:
        for change in changes:
            change.then()

    return Change(record, then)


@dataclass(frozen=True)
class Unmasked:
    """What a closed round's sums say: the mean of each cohort that could be opened; `lost` reports are in none.

    `change` is to be recorded in the transaction that commits the model.
    """

    means: tuple[Decoded, ...]
    change: Change
    lost: int = 0

    @property
    def whole(self) -> Decoded:
        """The weighted mean over all cohorts, as if it were the mean of one."""
        if len(self.means) == 1:
            return self.means[0]
        weight = sum(part.weight for part in self.means)
        mean = np.zeros(len(self.means[0].mean), np.float64)
        for part in self.means:
            mean += np.multiply(part.mean, part.weight / weight, dtype=np.float64)
        names = self.means[0].extras
        extras = {
            name: sum(part.extras[name] * part.weight for part in self.means) / weight for name in names
        }
        return Decoded(mean.astype(np.float32), weight, extras)


@dataclass
class LiveMasks:
    """A cohort of a masked round in memory; `changed` is set, and replaced, when there may be something new to say."""

    value: ServerRound
    epoch: LiveEpoch
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wakes everybody who waits for news."""
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def number(self) -> int:
        """Its key epoch, which is what a cohort is called by."""
        return self.value.open.epoch

    def has(self, client_id: str) -> bool:
        """Whether a client is in this cohort's roster."""
        return any(entry.client_id == client_id for entry in self.epoch.value.state.sealed_roster.entries)


class Turns:
    """The arithmetic of all cohorts, in threads: so few at once that the event loop gets its turn as well.

    Key agreements hold Python's lock: more of them at once would only take turns with each other and with the loop.
    Streams leave it for a tenth of a millisecond at a time, so there are no more than cores.
    `benchmarks/bench_secagg.py` tells how late the loop is meanwhile.
    """

    def __init__(self, cores: int = os.cpu_count() or 1) -> None:
        self._secrets = asyncio.Semaphore(1)
        self._streams = asyncio.Semaphore(cores)

    async def recover(self, epoch: ServerEpoch, round_: ServerRound) -> tuple[ServerRound, Recovery]:
        """`server.recover`."""
        async with self._secrets:
            return await asyncio.to_thread(server.recover, epoch, round_)

    async def remove_masks(self, round_: ServerRound, recovery: Recovery, total: Words) -> None:
        """`server.remove_masks`."""
        async with self._streams:
            await asyncio.to_thread(server.remove_masks, round_, recovery, total)


class Unmasking:
    """Opens and ends cohorts."""

    def __init__(
        self,
        database: Database,
        epochs: KeyEpochs,
        tickets: Tickets,
        signing: Signing,
        *,
        clock: Clock,
        sleep: Sleep,
        on_step: Callable[[str], None],
    ) -> None:
        self._database = database
        self._epochs = epochs
        self._tickets = tickets
        self._signing = signing
        self._clock = clock
        self._sleep = sleep
        self._on_step = on_step
        self._turns = Turns()

    async def open(self, live: LiveMasks, round_: Round, total: Words, until: int) -> tuple[Decoded, Change]:
        """The mean of a cohort's reports; `total` [words] is their masked sum, which is changed in place.

        Signs the list of survivors, waits at most until `until` (Unix ms) for enough holders, takes the masks off.
        Raises `PeerError` TOO_FEW, BAD_SHARE or OUT_OF_RANGE.
        """
        await self._close(live, round_)
        recovery = await self._recover(live, round_.terms, until)
        await self._turns.remove_masks(live.value, recovery, total)
        opened = live.value.open
        await add_server_noise(self._database, round_.terms, opened.encoding, total, live.value.context)
        state, ended, decoded = server.finish(
            live.epoch.value.state, live.value, total, sign=self._signing.sign
        )
        return decoded, self._ending(live, state, ended)

    def give_up(self, live: LiveMasks, round_: Round, code: Code) -> Change:
        """Ends a cohort without a sum."""
        value = live.value if live.value.request is not None else _with_reports(live, round_)
        state, ended = server.abandon(live.epoch.value.state, value, code, sign=self._signing.sign)
        return self._ending(live, state, ended)

    def leave_out(self, live: LiveMasks, round_: Round, error: PeerError) -> Change:
        """As `give_up`, of a round that goes on without this cohort: said by name, its reports are lost."""
        ending, now = self.give_up(live, round_, error.code), self._clock()
        clients = _reporters(live, round_)

        def record(connection: Connection, terms: Terms) -> None:
            ending.record(connection, terms)
            masks.lose_cohort(connection, terms.round_id, clients)
            reason = f"{error.code.value}: {error.detail}"
            history.note(
                connection, terms.run_id, "cohort_abandoned", now,
                round_id=terms.round_id, epoch=live.number, reports=len(clients), reason=reason,
            )  # fmt: skip

        log.warning("cohort_abandoned", round=round_.terms.round_id, epoch=live.number, code=error.code.value)
        return Change(record, ending.then)

    # -- inside

    async def _close(self, live: LiveMasks, round_: Round) -> None:
        """Signs M6 over exactly the accepted reports, once. Raises `PeerError` TOO_FEW."""
        async with live.lock:
            if live.value.request is not None:
                return
            closed = _with_reports(live, round_)
            reports = closed.reports
            _, closed = server.close_reports(live.epoch.value.state, closed, sign=self._signing.sign)
            if closed.request is None:
                needed = live.value.open.min_alive
                raise PeerError(Code.TOO_FEW, f"{len(reports)} reports of at least {needed}.")
            run_id, now = round_.terms.run_id, self._clock()

            def work(connection: Connection) -> None:
                masks.save_masked(connection, closed)
                history.note(
                    connection, run_id, "unmask_requested", now,
                    round_id=round_.terms.round_id, survivors=len(reports), epoch=live.number,
                )  # fmt: skip

            await self._database.run(work)
            live.value = closed
            live.tell()
        self._on_step(run_id)

    async def _recover(self, live: LiveMasks, terms: Terms, until: int) -> Recovery:
        """The seeds, as soon as enough holders answered rightly. Raises the last `PeerError` at `until`."""
        opened_at = self._clock()
        woken = False
        tried, trouble = -1, PeerError(Code.TOO_FEW)
        while True:
            answers, state = len(live.value.responses), live.epoch.value.state
            if answers != tried and server.can_recover(state, live.value):
                tried = answers
                try:
                    suspected, recovery = await self._turns.recover(state, live.value)
                except PeerError as error:
                    trouble = error
                else:
                    live.value = replace(live.value, suspects=suspected.suspects)
                    return recovery
            now = self._clock()
            if now >= until:
                threshold = state.sealed_roster.threshold
                if trouble.code is Code.TOO_FEW:
                    raise PeerError(Code.TOO_FEW, f"{answers} holders answered, {threshold} are needed.")
                raise trouble
            if not woken and now - opened_at >= PROMPT_MS:
                woken = True
                self._wake_holders(live, replace(terms, kind=Kind.UNMASK, deadline_at_ms=until))
            await self._pause(live, min(TIMER_SLICE_MS, until - now))

    def _wake_holders(self, live: LiveMasks, terms: Terms) -> None:
        answered = {answer.index for answer in live.value.responses}
        for index in live.epoch.value.state.members:
            if index not in answered:
                client_id = live.epoch.value.client_of(index)
                self._epochs.spawn(live.epoch, self._tickets.wake(terms, client_id, self._tickets.nonce()))

    async def _pause(self, live: LiveMasks, most_ms: int) -> None:
        changed = asyncio.ensure_future(live.changed.wait())
        slept = asyncio.ensure_future(self._sleep(most_ms))
        try:
            await asyncio.wait({changed, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            slept.cancel()

    def _ending(self, live: LiveMasks, state: ServerEpoch, ended: ServerRound) -> Change:
        now = self._clock()

        def record(connection: Connection, terms: Terms) -> None:
            masks.save_epoch(connection, replace(live.epoch.value, state=state))
            masks.save_masked(connection, ended)
            for index in ended.suspects:
                liar = live.epoch.value.client_of(index)
                history.count(connection, liar, Code.BAD_SHARE.value, now)
                history.note(
                    connection, terms.run_id, "wrong_share", now, round_id=terms.round_id, client_id=liar
                )

        def then() -> None:
            live.epoch.value = replace(live.epoch.value, state=state)
            live.value = ended
            live.tell()

        return Change(record, then)


def _reporters(live: LiveMasks, round_: Round) -> list[str]:
    """The clients of this cohort whose reports the round counts."""
    members = round_.state.members.values()
    return [m.client_id for m in members if m.stage is Stage.REPORTED and live.has(m.client_id)]


def _with_reports(live: LiveMasks, round_: Round) -> ServerRound:
    """The masked cohort with the reports of its members that the round counts."""
    members = [round_.state.members[client_id] for client_id in _reporters(live, round_)]
    heads = [codec.loads(MaskedReport, m.header.masked) for m in members if m.header is not None]
    return replace(live.value, reports=tuple(Reported(head.index, head.sha256) for head in heads))
