"""Rounds in pairwise mode at the aggregator: M4 out, M5's heads, M6 to M8, and the unmasked sums.

A thin driver of `fedless.protocol.secagg.server`: store, then say. A round has one cohort or several, each with a key
epoch, a sum and a list of survivors of its own; its automaton decides when reports close. Then `unmasking.py` opens
cohort after cohort from the answers of enough holders, or leaves one out with a reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection

from aggregator.epochs import KeyEpochs, LiveEpoch, Signing
from aggregator.interfaces import Clock, Sleep
from aggregator.members import Terms
from aggregator.round import Round
from aggregator.store import history, masks, rounds
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from aggregator.unmasking import Change, LiveMasks, Unmasked, Unmasking, all_of
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import LONG_POLL_MS, ReportHeader
from fedless.protocol.prg import Words
from fedless.protocol.secagg import codec, server
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.messages import MaskedReport, RoundOpen, UnmaskResponse
from fedless.protocol.secagg.ring import Decoded
from fedless.protocol.secagg.server import Reported
from fedless.protocol.secagg.state import Mark

__all__ = ["Change", "LiveMasks", "PairwiseRounds", "Unmasked"]


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
        self._signing = signing
        self._clock = clock
        self._on_step = on_step
        self._unmasking = Unmasking(
            database, epochs, tickets, signing, clock=clock, sleep=sleep, on_step=on_step
        )
        self._live: dict[int, list[LiveMasks]] = {}

    # -- opening, called by the run's driver

    def opening(self, cohorts: Sequence[tuple[LiveEpoch, RoundOpen]]) -> Change:
        """What to write down when the round opens: an M4 for each cohort, for the next slot of its key epoch.

        The slot is used up by it. What is given lacks round id, slot, deadline and signature; they are known when the
        round is written.
        """
        written: list[tuple[ServerEpoch, LiveMasks]] = []

        def record(connection: Connection, terms: Terms) -> None:
            written.clear()
            for epoch, opened in cohorts:
                slot = epoch.value.state.next_slot
                complete = replace(
                    opened, round_id=terms.round_id, slot=slot, deadline_at_ms=terms.deadline_at_ms
                )
                state, round_ = server.open_round(epoch.value.state, complete, sign=self._signing.sign)
                masks.save_epoch(connection, replace(epoch.value, state=state))
                masks.insert_masked(connection, round_)
                written.append((state, LiveMasks(round_, epoch)))

        def then() -> None:
            for state, live in written:
                live.epoch.value = replace(live.epoch.value, state=state)
            lives = [live for _, live in written]
            self._live.setdefault(lives[0].value.open.round_id, lives)

        return Change(record, then)

    # -- reports, called by the coordinator

    async def offer(self, terms: Terms, client_id: str, mark: bytes) -> bytes:
        """M4 for a client that checks in. Raises `PeerError` STATE_OLDER if its key state is lost or was restored."""
        live = await self._member(client_id, terms.round_id)
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
        live = await self._member(client_id, terms.round_id)
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

    async def open_sums(self, round_: Round, totals: Sequence[Words], window_ms: int) -> Unmasked:
        """The means of a closed round's cohorts; `totals` are their masked sums, which are changed in place.

        Each cohort has at most `window_ms`. One that cannot be opened is left out, as long as the others' reports are
        as many as the round needs. Raises `PeerError` TOO_FEW, BAD_SHARE or OUT_OF_RANGE: the driver then calls
        `give_up`.
        """
        lives, until = await self._find(round_.terms.round_id), self._clock() + window_ms
        works = [
            self._unmasking.open(live, round_, total, until)
            for live, total in zip(lives, totals, strict=True)
        ]
        found = await asyncio.gather(*works, return_exceptions=True)
        changes: list[Change] = []
        means: list[Decoded] = []
        survivors, failures = 0, []
        for live, opened in zip(lives, found, strict=True):
            if isinstance(opened, PeerError):
                failures.append((live.number, opened))
                changes.append(self._unmasking.leave_out(live, round_, opened))
            elif isinstance(opened, BaseException):
                raise opened
            else:
                means.append(opened[0])
                changes.append(opened[1])
                survivors += len(live.value.reports)
        _check_enough(round_.terms, survivors, len(means), failures)
        return Unmasked(tuple(means), self._then_forget(round_, changes), round_.state.reported - survivors)

    async def give_up(self, round_: Round, code: Code) -> Change:
        """Ends a round without a sum; what is returned is to be recorded with the round's abandonment."""
        lives = [live for live in await self._find(round_.terms.round_id) if live.value.result is None]
        return self._then_forget(round_, [self._unmasking.give_up(live, round_, code) for live in lives])

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
        live.epoch.value.state.entry(live.epoch.value.state.sealed_roster.index_of(client_id))
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
        live.epoch.value.state.entry(live.epoch.value.state.sealed_roster.index_of(client_id))
        return b"" if live.value.result is None else codec.dumps(live.value.result)

    # -- inside

    def _then_forget(self, round_: Round, changes: Sequence[Change]) -> Change:
        change = all_of(changes)

        def then() -> None:
            self._live.pop(round_.terms.round_id, None)
            change.then()

        return Change(change.record, then)

    async def _member(self, client_id: str, round_id: int) -> LiveMasks:
        """The cohort of the round that the client is in. Raises `PeerError` UNKNOWN_ROUND or NOT_IN_COHORT."""
        for live in await self._find(round_id):
            if live.has(client_id):
                return live
        raise PeerError(Code.NOT_IN_COHORT, "This client is in no roster of the round.")

    async def _find(self, round_id: int) -> list[LiveMasks]:
        """The round's cohorts, from the database after a restart; a round that has ended is not kept in memory."""
        lives = self._live.get(round_id)
        if lives is not None:
            return lives
        found = await self._database.run(lambda c: masks.load_with_epochs(c, round_id))
        lives = [LiveMasks(value, self._epochs.adopt(epoch)) for value, epoch in found]
        ended = all(live.value.result is not None for live in lives)
        return lives if ended else self._live.setdefault(round_id, lives)


def _check_enough(
    terms: Terms, survivors: int, opened: int, failures: Sequence[tuple[int, PeerError]]
) -> None:
    """Whether what could be opened is as much as the round needs. Raises `PeerError`, with every cohort's reason."""
    if failures and (survivors < terms.minimum or opened < terms.least_cohorts or not opened):
        if terms.sums == 1:
            raise failures[0][1]
        why = "; ".join(f"{number} {error.code.value}: {error.detail}" for number, error in failures)
        detail = f"{opened} of {terms.sums} cohorts could be opened, with {survivors} reports. Not: {why}"
        raise PeerError(failures[0][1].code, detail)


def _record(change: Change, terms: Terms, connection: Connection) -> None:
    change.record(connection, terms)


def _unsettled(connection: Connection, run_id: str) -> list[Round]:
    """The run's rounds that were abandoned, and of which nobody has signed the end yet."""
    return [rounds.load(connection, round_id) for round_id in masks.unsettled(connection, run_id)]


def _code_of(round_: Round) -> Code:
    """Why a round was abandoned, as a code."""
    known = Code.of(round_.state.reason.partition(":")[0])
    return Code.ROUND_CLOSED if known is Code.INTERNAL else known
