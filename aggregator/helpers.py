"""The calling side of helper mode: rounds with one message per client, whose masks the helper sums.

A thin driver of `fedless.protocol.secagg.helper`'s aggregator side, as `pairwise` is of pairwise mode: store, then say.
The helper is asked about exactly the accepted reports. Those that it refuses by name are written down, left out, and
it is asked about the others; after a restart the same set is asked again, and gets the same answer. A helper that is
away is asked again for a bounded time; then the round is abandoned, with the reason.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog
from sqlalchemy import Connection

from aggregator.epoch_records import Signing
from aggregator.interfaces import Clock, Random, Sleep
from aggregator.ledger import add_server_noise
from aggregator.link import Answer, SecondParty
from aggregator.masked import Plan, Prepared, encoding_of, sized
from aggregator.members import Stage, Terms
from aggregator.pairwise import Change, Unmasked
from aggregator.round import Round
from aggregator.store import helper_rounds as store
from aggregator.store import history, runs
from aggregator.store.engine import Database
from aggregator.uploads import Spool, take_out
from fedless.protocol.crypto import Prg
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Encoding, Kind, Mode, ReportHeader
from fedless.protocol.prg import Words
from fedless.protocol.secagg import codec, ring
from fedless.protocol.secagg.helper import (
    RefusedReports,
    check_helper_report,
    check_mask_sum,
    open_helper_round,
    subtract_masks,
)
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport
from fedless.protocol.secagg.ring import RingEncoding

FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 500, 15_000
CALL_MS_MIN = 1_000
MAY_PASS = frozenset({Code.HELPER_UNREACHABLE, Code.BUSY, Code.INTERNAL})
"""What may go away by itself: the same question is asked again."""
log = structlog.get_logger()


class HelperCalls(Protocol):
    """What is asked of the helper: `link.HelperLink`."""

    @property
    def party(self) -> SecondParty:
        """Who is asked."""
        ...

    async def close(self, request: CloseRequest, timeout_ms: int) -> Answer:
        """The sum of a set's masks, or the reports that keep it from being closed. Raises `PeerError`."""
        ...


class HelperRounds:
    """All rounds in helper mode of the fleet; one of its two `MaskedMode`s."""

    def __init__(
        self,
        database: Database,
        spool: Spool,
        calls: HelperCalls,
        signing: Signing,
        *,
        clock: Clock,
        sleep: Sleep,
        random: Random,
        on_step: Callable[[str], None] = lambda _run_id: None,
    ) -> None:
        self._database = database
        self._spool = spool
        self._calls = calls
        self._signing = signing
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._on_step = on_step
        self._opened: dict[str, HelperOpen] = {}  # of each run the round that was asked for last

    # -- opening, called by the run's driver

    async def prepare(self, plan: Plan) -> Prepared:
        """A cohort of its own for each round; the encoding has room for everybody who was selected.

        Raises `PeerError` TOO_FEW or RING_OVERFLOW.
        """
        cohort, least = plan.settings.cohort, plan.settings.secagg.minimum
        wanted = plan.terms.goal if plan.terms.kind is Kind.TRAIN else plan.settings.evaluation.devices
        goal, minimum = max(wanted, least), max(plan.terms.minimum, least)
        chosen = plan.choose(cohort.selected(goal), self._random(32))
        if len(chosen) < minimum:
            raise PeerError(Code.TOO_FEW, f"{len(chosen)} clients are at hand, at least {minimum} needed.")
        plan = sized(plan, len(chosen))
        encoding = encoding_of(plan, len(chosen), minimum)
        terms = replace(
            plan.terms,
            mode=Mode.HELPER,
            goal=goal,
            minimum=minimum,
            encoding=Encoding.RING16 if encoding.bits == 16 else Encoding.RING32,  # noqa: PLR2004
            extra_words=encoding.words - encoding.dimension,
        )
        return Prepared(terms, chosen, self._opening(self._unsigned(plan, encoding, len(chosen))))

    def _unsigned(self, plan: Plan, encoding: RingEncoding, n_max: int) -> HelperOpen:
        """The round but for its id, deadline and signature, which are known when it is written down."""
        return HelperOpen(
            round_id=0,
            model_version=plan.terms.model_version,
            model_digest=plan.model.start(plan.terms.kind),
            task_digest=hashlib.sha256(plan.task).digest(),
            encoding=encoding,
            prg=Prg.AES,
            n_max=n_max,
            deadline_at_ms=0,
            helper_certificate=self._calls.party.certificate,
            helper_key=self._calls.party.key,
            signature=b"",
        )

    def _opening(self, opened: HelperOpen) -> Change:
        def record(connection: Connection, terms: Terms) -> None:
            complete = replace(opened, round_id=terms.round_id, deadline_at_ms=terms.deadline_at_ms)
            store.insert_opened(connection, open_helper_round(complete, sign=self._signing.sign))

        return Change(record, lambda: None)

    # -- reports, called by the coordinator

    async def offer(self, terms: Terms, client_id: str, mark: bytes) -> bytes:  # noqa: ARG002 - pairwise mode's
        """The signed opening for a client that checks in."""
        return codec.dumps(await self._find(terms))

    async def check_head(self, terms: Terms, client_id: str, header: ReportHeader) -> None:
        """Whether a report's signed head is of this client and this round. Raises `PeerError`."""
        opened = await self._find(terms)
        head = codec.loads(HelperReport, header.masked)
        if head.client_id != client_id:
            raise PeerError(Code.NOT_IN_COHORT, "The report names another client than the caller.")
        if head.sha256 != header.sha256:
            raise PeerError(Code.WRONG_DIGEST, "The signed head is not that of the announced bytes.")
        check_helper_report(opened, head, at_ms=self._clock(), verify_member=self._signing.verify_member)

    # -- unmasking, called by the run's driver

    async def open_sums(self, round_: Round, totals: Sequence[Words], window_ms: int) -> Unmasked:
        """The mean of a closed round's reports, but for those that the helper refuses; its one sum is changed in place.

        Asks until there is an answer, for at most `window_ms`. Raises `PeerError`: what the helper said of the set as
        a whole, HELPER_UNREACHABLE, TOO_FEW (without the refused ones), an answer that does not check, OUT_OF_RANGE.
        """
        terms, heads = round_.terms, _heads(round_)
        opened = await self._find(terms)
        refused: Mapping[str, Code] = await self._database.run(
            lambda c: store.load_refused(c, terms.round_id)
        )
        until = self._clock() + window_ms
        while True:  # ends: each turn the set gets smaller, or it is refused as a whole
            _check_enough(terms, len(heads), refused)
            reports = tuple(head for client_id, head in heads.items() if client_id not in refused)
            request = CloseRequest(opened, reports)
            answer = await self._ask(terms, request, until)
            if not isinstance(answer, RefusedReports):
                break
            refused = await self._leave_out(terms, request, refused, answer)
        head, words = answer
        await asyncio.to_thread(check_mask_sum, request, head, words, self._calls.party.member)
        await asyncio.to_thread(self._take_off, terms.round_id, refused, words, totals[0])
        await add_server_noise(self._database, terms, opened.encoding, totals[0], opened.context)
        decoded = ring.decode(opened.encoding, totals[0], len(reports))
        return Unmasked((decoded,), self._ending(terms, refused), len(refused))

    async def give_up(self, round_: Round, code: Code) -> Change:
        """Ends a round without a sum. Nothing was revealed but, perhaps, a sum that was out of range."""
        round_id = round_.terms.round_id
        log.warning("sum_given_up", round=round_id, code=code.value)
        refused = await self._database.run(lambda c: store.load_refused(c, round_id))
        return self._ending(round_.terms, refused)

    async def settle(self, round_: Round) -> None:
        """Forgets a round that was abandoned: clients hold no state of it, and nothing must be taken back."""
        self._opened.pop(round_.terms.run_id, None)

    # -- inside

    async def _ask(self, terms: Terms, request: CloseRequest, until: int) -> Answer:
        """The helper's answer; a helper that is away is asked again. Raises the last `PeerError` at `until`."""
        await self._note(terms, "helper_asked", reports=len(request.reports))
        pause, troubled = FIRST_PAUSE_MS, False
        while True:
            try:
                return await self._calls.close(request, max(until - self._clock(), CALL_MS_MIN))
            except PeerError as error:
                if error.code not in MAY_PASS or self._clock() + pause >= until:
                    raise
                if not troubled:
                    troubled = True
                    await self._say_that_it_waits(terms, f"{error.code.value}: {error.detail}")
            await self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_MS)

    async def _say_that_it_waits(self, terms: Terms, reason: str) -> None:
        """In the run's log, and as what the run waits for, until the round ends."""
        run_id = terms.run_id
        await self._database.run(lambda c: runs.set_reason(c, run_id, f"waits for the helper: {reason}"))
        await self._note(terms, "helper_waited_for", reason=reason)

    async def _leave_out(
        self, terms: Terms, request: CloseRequest, refused: Mapping[str, Code], answer: RefusedReports
    ) -> Mapping[str, Code]:
        """Writes down whom the helper refused; all that it refused so far."""
        asked = {report.client_id for report in request.reports}
        fresh = {client_id: code for client_id, code in answer.reasons.items() if client_id in asked}
        if not fresh:
            raise PeerError(Code.MALFORMED, "The helper refuses reports that it was not asked about.")
        everybody, now = {**refused, **fresh}, self._clock()

        def work(connection: Connection) -> None:
            store.save_refused(connection, terms.round_id, everybody)
            for client_id, code in fresh.items():
                history.count(connection, client_id, code.value, now)
                history.note(
                    connection, terms.run_id, "report_left_out", now,
                    round_id=terms.round_id, client_id=client_id, code=code.value,
                )  # fmt: skip

        await self._database.run(work)
        self._on_step(terms.run_id)
        log.warning("reports_left_out", round=terms.round_id, count=len(fresh))
        return everybody

    def _take_off(self, round_id: int, refused: Mapping[str, Code], masks: Words, total: Words) -> None:
        """The masks, and the reports that they do not cover; blocks."""
        subtract_masks(total, masks)
        for client_id in refused:
            try:
                take_out(total, self._spool.file(round_id, client_id))
            except OSError as error:
                detail = f"The accepted report of {client_id} in round {round_id} cannot be read."
                raise LocalError(Code.STATE_CORRUPT, detail) from error

    def _ending(self, terms: Terms, refused: Mapping[str, Code]) -> Change:
        def record(connection: Connection, _terms: Terms) -> None:
            store.lose_refused(connection, terms.round_id, refused)
            runs.set_reason(connection, terms.run_id, "")

        return Change(record, lambda: None)

    async def _note(self, terms: Terms, event: str, **fields: int | str) -> None:
        run_id, now = terms.run_id, self._clock()
        await self._database.run(
            lambda c: history.note(c, run_id, event, now, round_id=terms.round_id, client_id="", **fields)
        )
        self._on_step(run_id)
        log.info(event, round=terms.round_id, **fields)

    async def _find(self, terms: Terms) -> HelperOpen:
        opened = self._opened.get(terms.run_id)
        if opened is None or opened.round_id != terms.round_id:
            opened = await self._database.run(lambda c: store.load_opened(c, terms.round_id))
            self._opened[terms.run_id] = opened
        return opened


def _heads(round_: Round) -> dict[str, HelperReport]:
    """The signed heads of the accepted reports by client, in order of id."""
    return {
        client_id: codec.loads(HelperReport, member.header.masked)
        for client_id, member in sorted(round_.state.members.items())
        if member.stage is Stage.REPORTED and member.header is not None
    }


def _check_enough(terms: Terms, accepted: int, refused: Mapping[str, Code]) -> None:
    left = accepted - len(refused)
    if left < terms.minimum:
        times = Counter(code.value for code in refused.values())
        why = ", ".join(f"{code} {count}" for code, count in sorted(times.items()))
        detail = f"{left} reports of at least {terms.minimum}; the helper refused: {why}."
        raise PeerError(Code.TOO_FEW, detail)
