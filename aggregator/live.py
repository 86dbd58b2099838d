"""A round in memory, and small things that the coordinator's steps share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from aggregator import events as e
from aggregator.interfaces import Clock, Sleep
from aggregator.members import OPEN, Member, Stage, Terms
from aggregator.privacy import Place, steps_per_unit
from aggregator.round import Round
from aggregator.store import steps
from aggregator.uploads import DISK_RETRY_MS, ClippedSum, FloatSum, RingSum, Spool
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.messages import ReportHeader

log = structlog.get_logger()
TIMER_SLICE_MS = 60_000
STEP_RETRY_MS = 5_000
BETWEEN_ROUNDS_MS = 1_000
"""A late client comes again after this, if its round is closed and the next one is not open yet."""
NOT_NOW = {Code.ROUND_CLOSED: 0, Code.ALREADY_REPORTED: 0, Code.BUSY: BETWEEN_ROUNDS_MS}
"""Refusals of a check-in that are no fault, and after how many ms to come again; 0: not in this round."""


class MaskedRounds(Protocol):
    """What the coordinator asks of a masked mode: `pairwise.PairwiseRounds`, `helpers.HelperRounds`."""

    async def offer(self, terms: Terms, client_id: str, mark: bytes) -> bytes:
        """The signed opening of the round for a client that checks in. Raises `PeerError`."""
        ...

    async def check_head(self, terms: Terms, client_id: str, header: ReportHeader) -> None:
        """Whether an announced report's signed head is right. Raises `PeerError`."""
        ...


@dataclass
class Live:
    """A round in memory, with what hangs on it; `added` says whose reports are in `sums`."""

    round: Round
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    sums: list[FloatSum] | list[RingSum] = field(default_factory=list)
    added: set[str] = field(default_factory=set)
    adding_ms: float = 0.0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    refused: set[tuple[str, Code]] = field(default_factory=set)
    follow_ups: dict[str, int] = field(default_factory=dict)
    stale: bool = False  # a step was not recorded: the database knows, memory does not

    def open_sums(self) -> list[FloatSum] | list[RingSum]:
        """The round's running sums, one for each of its cohorts, made when they are first needed."""
        terms = self.round.terms
        if not self.sums and terms.is_masked:
            self.sums = [RingSum(terms.words, terms.encoding) for _ in range(terms.sums)]
        elif not self.sums:
            self.sums = [_plain_sum(terms)]
        return self.sums

    def sum_of(self, client_id: str) -> FloatSum | RingSum:
        """The running sum that a client's report belongs to."""
        return self.open_sums()[self.round.state.cohort_of(client_id)]


def _plain_sum(terms: Terms) -> FloatSum:
    noise = terms.privacy
    if noise is None or noise.place is not Place.SERVER:
        return FloatSum(terms.words)
    return ClippedSum(terms.parameters, noise.clip, steps_per_unit(noise, terms.goal))


def range_limit(terms: Terms) -> float | None:
    """How large a number in a report may be; None: nobody can tell, since it is masked."""
    return None if terms.is_masked else terms.update_limit


PASSING = {Code.DISK_FULL: "disk space", Code.STORE_UNREACHABLE: "the database or the blob store"}
"""Troubles of this machine that end by themselves or by its operator: what a run waits for."""


async def check_again(spool: Spool, terms: Terms, member: Member) -> None:
    """An accepted report's file, after a restart; raises `LocalError` STATE_CORRUPT if it is not what was accepted."""
    if member.header is None:
        raise AssertionError  # it was counted with its header
    if terms.report_bytes:
        try:
            await spool.check(terms.round_id, member.client_id, member.header.sha256, range_limit(terms))
        except (OSError, PeerError) as error:
            detail = f"The accepted report of {member.client_id} in round {terms.round_id} is damaged."
            raise LocalError(Code.STATE_CORRUPT, detail) from error


@contextmanager
def own_faults_as_refusals() -> Iterator[None]:
    """Our full disk or absent database is no fault of the client's, but it must hear of it, and come again."""
    try:
        yield
    except LocalError as error:
        if error.code not in PASSING:
            raise
        detail = "The aggregator cannot store anything."
        raise PeerError(error.code, detail, retry_after_ms=DISK_RETRY_MS) from error


async def while_open(live: Live, client_id: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, until the round takes no more; who may be counted in the next one comes again with all of them."""
    async for chunk in chunks:
        if live.round.phase not in OPEN:
            if live.round.state.members[client_id].stage is Stage.LATE:
                detail = (
                    f"Round {live.round.terms.round_id} is closed; the next one will be open in a moment."
                )
                raise PeerError(Code.BUSY, detail, retry_after_ms=BETWEEN_ROUNDS_MS)
            raise PeerError(Code.ROUND_CLOSED, f"Round {live.round.terms.round_id} is {live.round.phase}.")
        yield chunk


async def ring(
    round_id: int, at_ms: int, tell: Callable[[], Awaitable[object]], clock: Clock, sleep: Sleep
) -> None:
    """Tells a round at this moment (Unix ms) what its timer was set for; again until it is recorded."""
    while (left := at_ms - clock()) > 0:  # in slices: the clock may be set meanwhile
        await sleep(min(left, TIMER_SLICE_MS))
    while True:
        try:
            await tell()
        except LocalError as error:  # a full disk: the round waits for space
            log.warning("step_failed", round=round_id, code=error.code.value)
            await sleep(STEP_RETRY_MS)
        else:
            return


def refusal_in(effects: Sequence[e.Effect]) -> PeerError | None:
    """The refusal among the effects of a step."""
    for effect in effects:
        if isinstance(effect, e.Refuse):
            again_ms = BETWEEN_ROUNDS_MS if effect.code is Code.BUSY else None
            return PeerError(effect.code, effect.detail, retry_after_ms=again_ms)
    return None


def log_step(round_: Round, event: e.Event, refusals: Sequence[e.Refuse]) -> None:
    """One line for a step that changed something."""
    codes = [refusal.code.value for refusal in refusals]
    facts = {"round": round_.terms.round_id, "phase": round_.phase.value}
    client_id = getattr(event, "client_id", "")
    log.info(
        steps.NAMES[type(event)],
        **facts,
        **({"client": client_id} if client_id else {}),
        **({"refused": codes} if codes else {}),
    )


def tell_failure(task: asyncio.Task[None]) -> None:
    """One line for a task beside that failed."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        fields = {"code": error.code.value} if isinstance(error, FedlessError) else {}
        log.error("task_failed", error=type(error).__name__, **fields)
