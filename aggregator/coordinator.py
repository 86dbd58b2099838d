"""The driver of one round: load, handle, save, then perform the effects.

Called by the gRPC service (client ids come from certificates), by the run's driver, and by timers. All that
changes a round passes through `_step`: one event, one transaction, under the round's lock; only then are the
effects performed. A step is never cut short by a caller that goes away. After a restart a round is loaded
again and the effects that may be missing are performed again; its sum is made again from the accepted reports.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from aggregator import events as e
from aggregator.interfaces import Clock, Sleep
from aggregator.late import ticket_terms
from aggregator.live import (
    NOT_NOW,
    Live,
    MaskedRounds,
    check_again,
    log_step,
    own_faults_as_refusals,
    range_limit,
    refusal_in,
    ring,
    tell_failure,
    while_open,
)
from aggregator.members import ENDED, OPEN, Stage, Terms
from aggregator.round import Round
from aggregator.store import late, steps
from aggregator.store import rounds as store
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from aggregator.uploads import FloatSum, RingSum, Spool
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn, InvocationMetrics, Mode, NotNow, Offer, ReportHeader

# a repeated wake-up ends, the first one goes on; an interrupted training goes on with the next one
STILL_THERE = frozenset({"reported", Code.DUPLICATE.value, Code.UNFINISHED.value})
FOLLOW_UPS_MAX = 1000  # so often a client is woken again in one round to go on with its training
Record = Callable[[Connection], None]
RecordTerms = Callable[[Connection, Terms], None]
log = structlog.get_logger()


class Coordinator:
    """Drives all open rounds of the fleet."""

    def __init__(
        self,
        database: Database,
        spool: Spool,
        tickets: Tickets,
        *,
        clock: Clock,
        sleep: Sleep,
        on_step: Callable[[str], None] = lambda _run_id: None,
        masked: Mapping[Mode, MaskedRounds] | None = None,
    ) -> None:
        """`on_step` hears the run's id after every step that wrote to the run's log."""
        self._database = database
        self._spool = spool
        self._tickets = tickets
        self._clock = clock
        self._sleep = sleep
        self._on_step = on_step
        self._masked = masked or {}
        self._live: dict[int, Live] = {}
        self._loading = asyncio.Lock()
        self._steps: set[asyncio.Task[list[e.Effect]]] = set()

    # -- called by the service

    async def check_in(self, client_id: str, request: CheckIn) -> Offer | NotNow:
        """The offer of the round, the same one to a repeat; or "not now" when it is over for this client.

        Raises `PeerError` UNKNOWN_ROUND, NOT_IN_COHORT, TICKET_FOREIGN, NOT_FINITE, OUT_OF_RANGE, DISK_FULL.
        """
        with own_faults_as_refusals():
            live = await self._part(request.round_id, client_id)
            refusal = refusal_in(await self._tell(live, e.ClientCheckedIn(client_id, request.nonce)))
            if refusal is None:
                return await self._offer(live.round, client_id, request.mark)
        if refusal.code in NOT_NOW:
            return NotNow(refusal.code.value, NOT_NOW[refusal.code])
        raise refusal

    async def begin_report(self, client_id: str, header: ReportHeader) -> tuple[int, bool]:
        """How many bytes of the announced report are here, and whether it is counted.

        A report whose bytes are all here is counted at once: an evaluation has none, and a crash may have
        come between the last byte and the counting. Raises `PeerError` UNKNOWN_ROUND, NOT_IN_COHORT,
        CONFLICTING_REPEAT, ROUND_CLOSED, WRONG_STATE, WRONG_ENCODING, WRONG_LENGTH, EXAMPLE_COUNT,
        OUT_OF_RANGE, NOT_FINITE, WRONG_DIGEST, DISK_FULL.
        """
        with own_faults_as_refusals():
            live = await self._part(header.round_id, client_id)
            await self._check_head(live, client_id, header)
            effects = await self._ask(live, e.ReportAnnounced(client_id, header))
            if any(isinstance(effect, e.Confirm) for effect in effects):
                return header.length_bytes, True
            offset = self._spool.offset(live.round.terms.round_id, client_id)
            if offset < header.length_bytes:
                return offset, False
            await self._arrive(live, client_id, header)
            return offset, True

    async def put_report(
        self, client_id: str, round_id: int, offset: int, chunks: AsyncIterator[bytes]
    ) -> None:
        """Takes the report's bytes from `offset` on; returns when the report is counted.

        Raises `PeerError` as `begin_report`, and WRONG_OFFSET, WRONG_LENGTH, WRONG_DIGEST, BUSY.
        """
        with own_faults_as_refusals():
            live = await self._part(round_id, client_id)
            for effect in await self._ask(live, e.UploadBegan(client_id)):
                if isinstance(effect, e.TakeUpload):
                    await self._take(live, client_id, effect.header, offset, chunks)

    async def put_metrics(self, client_id: str, metrics: InvocationMetrics) -> None:
        """Keeps what an invocation reported of itself; an outcome other than "reported" is a loss.

        Raises `PeerError` UNKNOWN_ROUND, NOT_IN_COHORT, DISK_FULL.
        """
        with own_faults_as_refusals():
            live = await self._part(metrics.round_id, client_id)
            now, terms = self._clock(), live.round.terms
            known = await self._database.run(
                lambda c: steps.keep_invocation(c, terms, client_id, metrics, now)
            )
            self._on_step(terms.run_id)
            if not known or metrics.outcome not in STILL_THERE:
                await self._ask(live, e.ClientGaveUp(client_id, Code.of(metrics.outcome).value))
            elif metrics.outcome == Code.UNFINISHED.value:
                self._follow_up(live, client_id)

    def _follow_up(self, live: Live, client_id: str) -> None:
        """Wakes a client again that stopped in the middle of its training, with the same ticket."""
        member = live.round.state.members[client_id]
        live.follow_ups[client_id] = times = live.follow_ups.get(client_id, 0) + 1
        if live.round.phase in OPEN and member.is_outstanding and times <= FOLLOW_UPS_MAX:
            terms = ticket_terms(live.round.terms, member)
            self._spawn(live, self._tickets.wake(terms, client_id, member.nonce))

    async def _offer(self, round_: Round, client_id: str, mark: bytes) -> Offer:
        terms = round_.terms
        offer = await self._tickets.offer(ticket_terms(terms, round_.state.members[client_id]))
        masked = self._masked.get(terms.mode)
        return (
            offer if masked is None else replace(offer, round_open=await masked.offer(terms, client_id, mark))
        )

    async def _check_head(self, live: Live, client_id: str, header: ReportHeader) -> None:
        """Of a masked report: who signed what for which round. A bad one is counted, and stops nobody else."""
        masked = self._masked.get(live.round.terms.mode)
        if masked is None:
            return
        try:
            await masked.check_head(live.round.terms, client_id, header)
        except PeerError as error:
            await self._tell(live, e.HeadRefused(client_id, error.code))
            raise

    # -- called by the run's driver

    async def open(self, terms: Terms, cohort: Sequence[str], record: RecordTerms | None = None) -> int:
        """Opens a round with this cohort: recorded first, then everybody is woken. Returns its new id.

        `record` writes more of the round in the same transaction.
        """
        nonces = {client_id: self._tickets.nonce() for client_id in cohort}

        def work(connection: Connection) -> tuple[Round, list[e.Effect]]:
            round_ = Round(replace(terms, round_id=store.next_id(connection, terms.opened_at_ms)))
            event = e.CohortSelected(nonces, late.take_over(connection, round_.terms, terms.opened_at_ms))
            effects = round_.handle(event, terms.opened_at_ms)
            steps.open_round(connection, round_, event, terms.opened_at_ms)
            if record is not None:
                record(connection, round_.terms)
            return round_, effects

        round_, effects = await self._database.run(work)
        round_.changed.clear()
        live = self._live[round_.terms.round_id] = Live(round_)
        await self._perform(live, effects)
        self._on_step(terms.run_id)
        return round_.terms.round_id

    async def closed(self, round_id: int) -> Round:
        """The round once it takes no more reports: its phase is then unmasking, committing or an ended one."""
        live = await self._find(round_id)
        await live.closed.wait()
        return live.round

    async def sums(self, round_id: int) -> tuple[list[FloatSum] | list[RingSum], float]:
        """The sums of a closed round's cohorts, each accepted report in one exactly once, and the ms it took.

        Raises `LocalError` STATE_CORRUPT if an accepted report cannot be read any more.
        """
        live = await self._find(round_id)
        async with live.lock:
            members = live.round.state.members.values()
            accepted = {member.client_id for member in members if member.stage is Stage.REPORTED}
            if live.added != accepted:  # after a restart, or an addition that failed
                await self._add_again(live, accepted)
            return live.open_sums(), live.adding_ms

    def spooled(self, round_id: int, client_id: str) -> Path:
        """The file of an accepted report, there until its round has ended."""
        return self._spool.file(round_id, client_id)

    async def finish(
        self, round_id: int, event: e.ModelCommitted | e.RoundStopped, record: Record | None = None
    ) -> None:
        """Ends the round; `record` writes the new model in the same transaction, unless it had ended before."""
        await self._tell(await self._find(round_id), event, record)

    async def close(self) -> None:
        """Ends timers and wake-ups, lets begun steps end; the rounds go on after the next start."""
        tasks = [task for live in self._live.values() for task in live.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._steps, return_exceptions=True)
        self._live.clear()

    # -- one step

    async def _tell(self, live: Live, event: e.Event, record: Record | None = None) -> list[e.Effect]:
        """One step, to its end even if the caller is cancelled: what is recorded must be performed."""
        step = asyncio.create_task(self._step(live, event, record))
        self._steps.add(step)
        step.add_done_callback(self._steps.discard)
        return await asyncio.shield(step)

    async def _ask(self, live: Live, event: e.ClientEvent) -> list[e.Effect]:
        effects = await self._tell(live, event)
        refusal = refusal_in(effects)
        if refusal is not None:
            raise refusal
        return effects

    async def _step(self, live: Live, event: e.Event, record: Record | None) -> list[e.Effect]:
        async with live.lock:
            await self._refresh(live)
            now, round_ = self._clock(), live.round
            before = round_.phase
            effects = round_.handle(event, now)
            changed = bool(round_.changed) or round_.phase is not before
            refusals = [effect for effect in effects if isinstance(effect, e.Refuse)]

            def work(connection: Connection) -> None:
                if changed:
                    steps.change_round(connection, round_, event, effects, now)
                steps.count_refusals(connection, round_, refusals, live.refused, now)
                if changed and record is not None:
                    record(connection)

            if changed or refusals:
                await self._save(live, work)
            live.refused.update((refusal.client_id, refusal.code) for refusal in refusals)
            await self._perform(live, effects)
        if changed or refusals:
            log_step(live.round, event, refusals)
            self._on_step(round_.terms.run_id)
        return effects

    async def _save(self, live: Live, work: Record) -> None:
        """One transaction; if it fails, the memory goes back to what the disk says."""
        try:
            await self._database.run(work)
        except Exception:
            live.stale = True
            await self._refresh(live)
            raise
        live.round.changed.clear()

    async def _refresh(self, live: Live) -> None:
        """Takes the round from the database, if what is in memory went further than that."""
        if live.stale:
            round_id = live.round.terms.round_id
            live.round = await self._database.run(lambda c: store.load(c, round_id))
            live.stale = False

    # -- effects

    async def _perform(self, live: Live, effects: Sequence[e.Effect]) -> None:
        terms = live.round.terms
        for effect in effects:
            match effect:
                case e.Wake(client_id):
                    member = live.round.state.members[client_id]
                    self._spawn(
                        live, self._tickets.wake(ticket_terms(terms, member), client_id, member.nonce)
                    )
                case e.SetTimer(at_ms, event):
                    tell = partial(self._tell, live, event)
                    self._spawn(live, ring(terms.round_id, at_ms, tell, self._clock, self._sleep))
                case e.AddReport(client_id, weight, counts):
                    await self._add(live, client_id, weight, counts)
                case e.DropUpload(client_id):
                    await self._spool.erase(terms.round_id, client_id)
                case e.OpenSum() | e.CommitModel():
                    live.closed.set()
                case e.Erase():
                    await self._end(live)
                case e.Admit() | e.TakeUpload() | e.Confirm() | e.Refuse():
                    pass  # answers, which the caller gives

    async def _add(self, live: Live, client_id: str, weight: float, counts: float) -> None:
        began = time.monotonic()
        if live.round.terms.report_bytes:
            file = self._spool.file(live.round.terms.round_id, client_id)
            await asyncio.to_thread(live.sum_of(client_id).add, file, weight, counts)
        live.added.add(client_id)
        live.adding_ms += (time.monotonic() - began) * 1000

    async def _add_again(self, live: Live, accepted: set[str]) -> None:
        live.sums, live.added = [], set()
        terms = live.round.terms
        for client_id in sorted(accepted):
            member = live.round.state.members[client_id]
            await check_again(self._spool, terms, member)
            await self._add(live, client_id, *live.round.weight(member))

    async def _end(self, live: Live) -> None:
        round_id = live.round.terms.round_id
        live.sums = []
        live.closed.set()
        self._live.pop(round_id, None)
        for task in live.tasks:
            task.cancel()
        await self._spool.erase_round(round_id)

    def _spawn(self, live: Live, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        live.tasks.add(task)
        task.add_done_callback(live.tasks.discard)
        task.add_done_callback(tell_failure)

    # -- reports

    async def _take(
        self, live: Live, client_id: str, header: ReportHeader, offset: int, chunks: AsyncIterator[bytes]
    ) -> None:
        round_id, length = live.round.terms.round_id, header.length_bytes
        await self._spool.receive(round_id, client_id, offset, length, while_open(live, client_id, chunks))
        await self._arrive(live, client_id, header)

    async def _arrive(self, live: Live, client_id: str, header: ReportHeader) -> None:
        """All bytes are here: whether they are what was announced, then they count."""
        try:
            if header.length_bytes:
                limit = range_limit(live.round.terms)
                round_id = live.round.terms.round_id
                await self._spool.check(round_id, client_id, header.sha256, limit)
        except PeerError as error:
            await self._tell(live, e.ReportSpoiled(client_id, error.code))
            raise
        await self._ask(live, e.ReportArrived(client_id))

    # -- rounds in memory

    async def _part(self, round_id: int, client_id: str) -> Live:
        """The round in which a client's ticket of this round counts: a later one, if it was late for this."""
        live = await self._find(round_id)
        member = live.round.state.members.get(client_id)
        if member is None or member.stage is not Stage.LATE:
            return live
        now_in = await self._database.run(lambda c: late.where_now(c, round_id, client_id))
        return await self._find(now_in) if now_in else live

    async def _find(self, round_id: int) -> Live:
        """The round, from the database after a restart; an ended one is not kept in memory."""
        live = self._live.get(round_id)
        if live is not None:
            return live
        async with self._loading:
            if round_id in self._live:
                return self._live[round_id]
            live = Live(await self._database.run(lambda c: store.load(c, round_id)))
            if live.round.phase in ENDED:
                live.closed.set()
            else:
                self._live[round_id] = live
                await self._perform(live, live.round.again())
                for client_id in await self._database.run(lambda c: store.unfinished(c, round_id)):
                    self._follow_up(live, client_id)
            return live
