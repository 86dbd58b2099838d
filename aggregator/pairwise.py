"""Rounds in pairwise mode at the aggregator: M4 out, M5's heads, M6 to M8, and the unmasked sum.

A thin driver of `fedless.protocol.secagg.server`: store, then say. The round's automaton decides when reports close;
this module opens the sum afterwards, from the answers of enough holders, or gives up with a reason. Nothing of a
round is revealed before its list of survivors is signed, and only one list ever is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
from sqlalchemy import Connection

from aggregator.epochs import KeyEpochs, LiveEpoch, Signing
from aggregator.interfaces import Clock, Sleep
from aggregator.ledger import add_server_noise
from aggregator.members import Stage, Terms
from aggregator.round import Round
from aggregator.store import history, masks, rounds
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import LONG_POLL_MS, Kind, ReportHeader
from fedless.protocol.prg import Words
from fedless.protocol.secagg import codec, server
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.messages import MaskedReport, RoundOpen, UnmaskResponse
from fedless.protocol.secagg.recovery import Recovery
from fedless.protocol.secagg.ring import Decoded
from fedless.protocol.secagg.server import Reported, ServerRound
from fedless.protocol.secagg.state import Mark

PROMPT_MS = 3_000
"""Reporters wait for the unmask request; only if too few of them answer in this time the others are woken."""
TIMER_SLICE_MS = 500
log = structlog.get_logger()


@dataclass(frozen=True)
class Change:
    """What to write in the transaction of a larger step, and what to do once that has committed."""

    record: Callable[[Connection, Terms], None]
    then: Callable[[], None]


@dataclass
class LiveMasks:
    """A masked round in memory; `changed` is set, and replaced, when there may be something new to say."""

    value: ServerRound
    epoch: LiveEpoch
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wakes everybody who waits for news."""
        self.changed.set()
        self.changed = asyncio.Event()


class PairwiseRounds:
    """All rounds in pairwise mode of the fleet."""

    def __init__(
        self,
        database: Database,
        epochs: KeyEpochs,
        tickets: Tickets,
        signing: Signing,
        *,
        clock: Clock,
        sleep: Sleep,
        on_step: Callable[[str], None] = lambda _run_id: None,
    ) -> None:
        self._database = database
        self._epochs = epochs
        self._tickets = tickets
        self._signing = signing
        self._clock = clock
        self._sleep = sleep
        self._on_step = on_step
        self._live: dict[int, LiveMasks] = {}

    # -- opening, called by the run's driver

    def opening(self, epoch: LiveEpoch, opened: RoundOpen) -> Change:
        """What to write down when the round opens: M4, signed for the key epoch's next slot, which is used up by it.

        `opened` lacks its round id, slot, deadline and signature; they are known when the round is written.
        """
        written: list[tuple[ServerEpoch, ServerRound]] = []

        def record(connection: Connection, terms: Terms) -> None:
            slot = epoch.value.state.next_slot
            complete = replace(
                opened, round_id=terms.round_id, slot=slot, deadline_at_ms=terms.deadline_at_ms
            )
            state, round_ = server.open_round(epoch.value.state, complete, sign=self._signing.sign)
            masks.save_epoch(connection, replace(epoch.value, state=state))
            masks.insert_masked(connection, round_)
            written.append((state, round_))

        def then() -> None:
            state, round_ = written[-1]
            epoch.value = replace(epoch.value, state=state)
            self._live.setdefault(round_.open.round_id, LiveMasks(round_, epoch))

        return Change(record, then)

    # -- reports, called by the coordinator

    async def offer(self, terms: Terms, client_id: str, mark: bytes) -> bytes:
        """M4 for a client that checks in. Raises `PeerError` STATE_OLDER if its key state is lost or was restored."""
        live = await self._find(terms.round_id)
        index = live.epoch.value.state.sealed_roster.index_of(client_id)
        state = live.epoch.value.state
        earlier = await self._database.run(lambda c: masks.masked_of_epoch(c, state.epoch))
        theirs = codec.loads(Mark, mark) if mark else Mark(0, 0, 0)
        try:
            server.check_mark(state, earlier, index, theirs)
        except PeerError as error:
            if theirs.epoch != 0 or error.code is not Code.STATE_OLDER:
                raise
            raise PeerError(
                error.code, "This client holds no keys of the key epoch.", fix=error.fix
            ) from error
        return codec.dumps(live.value.open)

    async def check_head(self, terms: Terms, client_id: str, header: ReportHeader) -> None:
        """Whether a masked report's signed head is of this client and this round. Raises `PeerError`."""
        live = await self._find(terms.round_id)
        head = codec.loads(MaskedReport, header.masked)
        if live.epoch.value.state.sealed_roster.index_of(client_id) != head.index:
            raise PeerError(Code.NOT_IN_COHORT, "The report names another member than the caller.")
        if head.sha256 != header.sha256 or head.length_bytes != header.length_bytes:
            raise PeerError(Code.WRONG_DIGEST, "The signed head is not that of the announced bytes.")
        if Reported(head.index, head.sha256) in live.value.reports:
            return  # closed, with this report in it
        server.check_report(
            live.epoch.value.state,
            live.value,
            head,
            at_ms=self._clock(),
            verify_member=self._signing.verify_member,
        )

    # -- unmasking, called by the run's driver

    async def open_sum(self, round_: Round, total: Words, window_ms: int) -> tuple[Decoded, Change]:
        """The mean of a closed round's reports; `total` [words] is their masked sum, which is changed in place.

        Signs the list of survivors, waits at most `window_ms` for enough holders, takes the masks off. What is
        returned beside the mean is to be recorded in the transaction that commits the model. Raises `PeerError`
        TOO_FEW, BAD_SHARE or OUT_OF_RANGE: the driver then calls `give_up`.
        """
        live = await self._close(round_)
        opened_at = self._clock()
        recovery = await self._recover(live, round_.terms, opened_at, opened_at + window_ms)
        await asyncio.to_thread(server.remove_masks, live.value, recovery, total)
        opened = live.value.open
        await add_server_noise(self._database, round_.terms, opened.encoding, total, live.value.context)
        state, ended, decoded = server.finish(
            live.epoch.value.state, live.value, total, sign=self._signing.sign
        )
        return decoded, self._ending(live, state, ended)

    async def give_up(self, round_: Round, code: Code) -> Change:
        """Ends a round without a sum; what is returned is to be recorded with the round's abandonment."""
        live = await self._find(round_.terms.round_id)
        value = live.value if live.value.request is not None else _with_reports(live.value, round_)
        state, ended = server.abandon(live.epoch.value.state, value, code, sign=self._signing.sign)
        return self._ending(live, state, ended)

    async def settle(self, round_: Round) -> None:
        """Ends, without a sum, what of this run was abandoned by others, and lets go of what ended with the run."""
        run_id = round_.terms.run_id
        for abandoned in await self._database.run(lambda c: _unsettled(c, run_id)):
            change = await self.give_up(abandoned, _code_of(abandoned))
            await self._database.run(partial(_record, change, abandoned.terms))
            change.then()
        await self._epochs.let_go(run_id)

    # -- unmasking, called by the service

    async def unmask_request(self, client_id: str, round_id: int) -> bytes:
        """M6, when it is signed; empty after 25 s without, or if the round ended without one."""
        live = await self._member(client_id, round_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(LONG_POLL_MS / 1000):
                while live.value.request is None and live.value.result is None:
                    await live.changed.wait()
        if live.value.request is None and live.value.result is not None:
            raise PeerError(Code.ROUND_CLOSED, f"It ended without a sum: {live.value.result.reason}.")
        return b"" if live.value.request is None else codec.dumps(live.value.request)

    async def post_response(self, client_id: str, round_id: int, message: bytes) -> None:
        """M7. Raises `PeerError` as `server.accept_response`."""
        live = await self._member(client_id, round_id)
        response = codec.loads(UnmaskResponse, message)
        state = live.epoch.value.state
        if state.sealed_roster.index_of(client_id) != response.index:
            raise PeerError(Code.NOT_IN_COHORT, "The shares name another member than the caller.")
        async with live.lock:
            answered = server.accept_response(state, live.value, response)
            if answered is live.value:
                return
            run_id, now = live.epoch.value.run_id, self._clock()

            def work(connection: Connection) -> bool:
                if not masks.save_masked(connection, answered):
                    return False
                history.note(
                    connection, run_id, "unmask_answered", now, round_id=round_id, client_id=client_id
                )
                return True

            if await self._database.run(work) and live.value.result is None:
                live.value = replace(live.value, responses=answered.responses)
                live.tell()
        self._on_step(run_id)

    async def result(self, client_id: str, round_id: int) -> bytes:
        """M8; empty while the round has not ended."""
        live = await self._member(client_id, round_id)
        return b"" if live.value.result is None else codec.dumps(live.value.result)

    # -- inside

    async def _close(self, round_: Round) -> LiveMasks:
        """Signs M6 over exactly the accepted reports, once. Raises `PeerError` TOO_FEW."""
        live = await self._find(round_.terms.round_id)
        async with live.lock:
            if live.value.request is not None:
                return live
            closed = _with_reports(live.value, round_)
            reports = closed.reports
            _, closed = server.close_reports(live.epoch.value.state, closed, sign=self._signing.sign)
            if closed.request is None:
                needed = live.value.open.min_alive
                raise PeerError(Code.TOO_FEW, f"{len(reports)} reports of at least {needed}.")
            run_id, now = round_.terms.run_id, self._clock()

            def work(connection: Connection) -> None:
                masks.save_masked(connection, closed)
                history.note(
                    connection,
                    run_id,
                    "unmask_requested",
                    now,
                    round_id=round_.terms.round_id,
                    survivors=len(reports),
                )

            await self._database.run(work)
            live.value = closed
            live.tell()
        self._on_step(run_id)
        return live

    async def _recover(self, live: LiveMasks, terms: Terms, opened_at: int, until: int) -> Recovery:
        """The seeds, as soon as enough holders answered rightly. Raises the last `PeerError` at `until`."""
        woken = False
        tried, trouble = -1, PeerError(Code.TOO_FEW)
        while True:
            answers, state = len(live.value.responses), live.epoch.value.state
            if answers != tried and server.can_recover(state, live.value):
                tried = answers
                try:
                    suspected, recovery = await asyncio.to_thread(server.recover, state, live.value)
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
            self._live.pop(ended.open.round_id, None)
            live.tell()

        return Change(record, then)

    async def _member(self, client_id: str, round_id: int) -> LiveMasks:
        live = await self._find(round_id)
        live.epoch.value.state.entry(live.epoch.value.state.sealed_roster.index_of(client_id))
        return live

    async def _find(self, round_id: int) -> LiveMasks:
        """The round, from the database after a restart; one that has ended is not kept in memory."""
        live = self._live.get(round_id)
        if live is not None:
            return live
        value, epoch = await self._database.run(lambda c: masks.load_with_epoch(c, round_id))
        live = LiveMasks(value, self._epochs.adopt(epoch))
        return live if value.result is not None else self._live.setdefault(round_id, live)


def _with_reports(value: ServerRound, round_: Round) -> ServerRound:
    """The masked round with the reports that the round counts."""
    members = [member for member in round_.state.members.values() if member.stage is Stage.REPORTED]
    heads = [
        codec.loads(MaskedReport, member.header.masked) for member in members if member.header is not None
    ]
    return replace(value, reports=tuple(Reported(head.index, head.sha256) for head in heads))


def _record(change: Change, terms: Terms, connection: Connection) -> None:
    change.record(connection, terms)


def _unsettled(connection: Connection, run_id: str) -> list[Round]:
    """The run's rounds that were abandoned, and of which nobody has signed the end yet."""
    return [rounds.load(connection, round_id) for round_id in masks.unsettled(connection, run_id)]


def _code_of(round_: Round) -> Code:
    """Why a round was abandoned, as a code."""
    known = Code.of(round_.state.reason.partition(":")[0])
    return Code.ROUND_CLOSED if known is Code.INTERNAL else known
