"""The driver of one run: round after round until there are enough, each one committed and judged.

Everything is in the database, so the driver may be stopped at any moment and started again: it first completes
what is open. Model n+1 and "round committed" are one transaction; spooled reports are erased after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection

from aggregator import events as e
from aggregator import strategies
from aggregator.candidates import AtHand, Candidates
from aggregator.completion import Completion
from aggregator.coordinator import RecordTerms
from aggregator.evaluation import reason
from aggregator.interfaces import ClientRecord
from aggregator.judgement import Scored, why_stop
from aggregator.ledger import Ledger
from aggregator.live import PASSING
from aggregator.masked import MaskedMode, Plan, mode_of
from aggregator.means import Means
from aggregator.members import Phase, Terms
from aggregator.selection.draw import Draw
from aggregator.selection.uniform import uniform
from aggregator.store import history, masks, measured, rounds, runs
from aggregator.store.records import ModelRecord, RunRecord, RunState
from aggregator.tasks import TaskSettings
from fedless.protocol import wire
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.messages import Kind

LOOK_AGAIN_MS = 2_000
DISK_AGAIN_MS = 10_000
T = TypeVar("T")
log = structlog.get_logger()


class _PausedError(Exception):
    """A round was about to open in a run that does not open any now."""


class Driver:
    """Drives one run to its end."""

    def __init__(self, means: Means, run: RunRecord, settings: TaskSettings) -> None:
        self._means = means
        self._run = run
        self._settings = settings
        self._task = wire.task_from_bytes(run.task)
        self._strategy = strategies.make(settings.strategy, settings.strategy_options.given())
        self._masked = means.masked.get(self._task.mode)
        self._ledger: Ledger | None = None
        if settings.privacy is not None:
            clock, random = means.clock, means.random
            self._ledger = Ledger(means.database, settings, run.run_id, clock=clock, random=random)
        unmask_s = settings.secagg.unmask_s
        self._completion = Completion(
            means, self._strategy, self._masked, unmask_s, self._ledger, self._task.layout
        )
        least = 0 if self._masked is None else settings.secagg.minimum
        self._candidates = Candidates(means, run.run_id, settings, self._strategy, self._ledger, least)
        self._setups_failed = 0

    async def drive(self) -> None:
        """Goes on until the run has ended; a full disk and an absent database are waited for, and said."""
        while True:
            try:
                await self._go_on()
            except LocalError as error:
                if error.code not in PASSING:
                    await self._fail(reason(error))
                    return
                log.warning("run_waits", run=self._run.run_id, reason=reason(error))
                with contextlib.suppress(LocalError):
                    await self._say(f"waits for {PASSING[error.code]}: {error.detail}")
                await self._means.sleep(DISK_AGAIN_MS)
            except FedlessError as error:
                await self._fail(reason(error))
                return
            except Exception as error:  # a bug must not leave a run that seems to run
                log.exception("run_failed", run=self._run.run_id)
                await self._fail(f"{Code.INTERNAL.value}: {type(error).__name__}")
                raise
            else:
                return

    async def _go_on(self) -> None:
        mode_of(self._task.mode, self._means.masked)  # its helper may have left the settings
        for unended in await self._store(lambda c: rounds.unended(c, self._run.run_id)):
            await self._complete(unended)
        await self._settle()
        await self._judge_last()
        while not await self._ended():
            round_id = await self._open_training()
            if round_id is not None:
                await self._complete(round_id)
                await self._judge_last()

    # -- opening

    async def _open_training(self) -> int | None:
        """Opens the next round; None if the run ended, or was paused, while it waited for clients."""
        found = await self._enough_candidates()
        if found is None:
            return None
        want, candidates = found.want, found.records
        model, number = await self._store(lambda c: self._begin(c, found))
        terms = self._terms(Kind.TRAIN, number, model.version, self._settings.round.deadline_s)
        terms = replace(
            terms,
            goal=want.goal,
            minimum=want.minimum,
            parameters=self._task.layout.common,
            vectors=self._task.rule.vectors,
            extras=tuple(self._strategy.extras(self._task.rule, self._task.max_examples).items()),
            privacy=None if self._ledger is None else (await self._ledger.noise()).sized(want.goal),
            population=len(candidates) + len(found.back_off) + found.busy,
            late=self._strategy.late,
        )
        if self._masked is not None:
            return await self._open_masked(self._masked, terms, model, candidates)
        choose = await self._candidates.choice(terms, candidates)
        chosen = choose(want.wake, self._means.random(32))
        return await self._open(terms, chosen)

    async def _open_masked(
        self, mode: MaskedMode, terms: Terms, model: ModelRecord, candidates: Sequence[ClientRecord]
    ) -> int | None:
        """Prepares and opens a masked round; None if it cannot be prepared, which is tried again, and bounded."""
        choose = await self._candidates.choice(terms, candidates)
        try:
            least = self._strategy.least_cohorts if terms.kind is Kind.TRAIN else 1
            prepared = await mode.prepare(
                Plan(terms, self._settings, self._run.task, model, candidates, choose, least)
            )
        except PeerError as error:
            self._setups_failed += 1
            if error.code is not Code.TOO_FEW or self._setups_failed >= self._settings.round.abandon_limit:
                await self._fail(reason(error))
                return None
            await self._say(f"the key epoch's set-up failed: {reason(error)}")
            await self._means.sleep(LOOK_AGAIN_MS)
            return None
        self._setups_failed = 0
        now, left = self._means.clock(), prepared.terms.deadline_at_ms - prepared.terms.opened_at_ms
        terms = replace(prepared.terms, opened_at_ms=now, deadline_at_ms=now + left)
        change = prepared.change
        round_id = await self._open(terms, prepared.cohort, change.record)
        if round_id is not None:
            change.then()
        return round_id

    async def _open_evaluation(self, trained: Terms, version: int) -> int | None:
        """Opens an evaluation of a new model on a sample of devices; None if there is no device."""
        candidates = await self._candidates.judges()
        if not candidates:
            return None
        count = min(self._settings.evaluation.devices, len(candidates))
        chosen = uniform(candidates, Draw(count, self._means.random(32)))
        deadline_s = self._settings.evaluation.deadline_s
        terms = self._terms(Kind.EVALUATE, trained.number, version, deadline_s)
        if self._masked is not None:
            model = await self._store(lambda c: runs.model(c, self._run.run_id, version))
            return await self._open_masked(self._masked, terms, model, candidates)
        return await self._open(replace(terms, goal=count), chosen)

    async def _open(
        self, terms: Terms, cohort: Sequence[str], record: RecordTerms | None = None
    ) -> int | None:
        """Opens a round; None, and nothing is recorded, if the run was paused meanwhile."""

        def unless_paused(connection: Connection, opened: Terms) -> None:
            if runs.state(connection, opened.run_id) is not RunState.RUNNING:
                raise _PausedError
            if record is not None:
                record(connection, opened)

        try:
            return await self._means.coordinator.open(terms, cohort, unless_paused)
        except _PausedError:
            return None

    def _terms(self, kind: Kind, number: int, version: int, deadline_s: int) -> Terms:
        now = self._means.clock()
        return Terms(
            round_id=0,  # the coordinator gives it
            run_id=self._run.run_id,
            number=number,
            kind=kind,
            model_version=version,
            goal=1,
            minimum=1,
            opened_at_ms=now,
            deadline_at_ms=now + 1000 * deadline_s,
            parameters=0,
            max_examples=self._task.max_examples,
            grace=self._settings.round.grace,
            update_limit=self._settings.client.update_limit,
        )

    async def _enough_candidates(self) -> AtHand | None:
        """Waits, saying so, until enough clients are eligible; ends the run after `cohort.wait_s`."""
        cohort, since, said = self._settings.cohort, self._means.clock(), ""
        while True:
            found = await self._candidates.at_hand()
            if found.enough:
                if said:
                    await self._say("")
                return found
            if found.spent:
                await self._end(RunState.FINISHED, found.spent)
                return None
            now = f"{len(found.records)} clients eligible, at least {found.want.at_hand} needed"
            if await self._store(lambda c: runs.state(c, self._run.run_id)) is not RunState.RUNNING:
                return None
            if self._means.clock() - since >= 1000 * cohort.wait_s:
                await self._fail(f"{Code.TOO_FEW.value}: {now}, after {cohort.wait_s} s")
                return None
            if now != said:
                await self._say(f"waits for clients: {now}")
                said = now
            await self._means.sleep(LOOK_AGAIN_MS)

    def _begin(self, connection: Connection, found: AtHand) -> tuple[ModelRecord, int]:
        """What the next round starts from, and its number; who rests now is written down, for `fedless why`."""
        run_id, now = self._run.run_id, self._means.clock()
        model, number = runs.newest_model(connection, run_id), rounds.next_number(connection, run_id)
        told = found.told(measured.resting(connection, now))
        selection = self._settings.cohort.selection
        history.note(
            connection, run_id, "clients_considered", now, number=number, selection=selection, **told
        )
        return model, number

    # -- completing

    async def _complete(self, round_id: int) -> None:
        """Waits until a round is closed, and commits what it gave."""
        await self._completion.complete(await self._means.coordinator.closed(round_id))

    async def _settle(self) -> None:
        """Ends what a crash, or the run's end, left open of masked rounds."""
        last = await self._store(lambda c: rounds.newest(c, self._run.run_id))
        if self._masked is not None and last is not None:
            await self._masked.settle(last)

    # -- judging

    async def _judge_last(self) -> None:
        """Evaluates the newest model, centrally and on devices, where the task asks and it was not done yet."""
        last = await self._store(lambda c: rounds.newest(c, self._run.run_id))
        if last is None or last.phase is not Phase.COMMITTED:
            return
        terms = last.terms
        known = await self._store(lambda c: rounds.metrics(c, terms.round_id))
        evaluation, version = self._settings.evaluation, terms.model_version + 1
        due = evaluation.central_every and (
            terms.number % evaluation.central_every == 0 or version == self._settings.rounds
        )
        if due and self._run.test_set_digest and "test_loss" not in known:
            await self._judge_centrally(terms.round_id, version)
        if evaluation.devices and "device_examples" not in known:
            round_id = await self._open_evaluation(terms, version)
            if round_id is not None:
                await self._complete(round_id)

    async def _judge_centrally(self, round_id: int, version: int) -> None:
        means, run = self._means, self._run
        model = await self._store(lambda c: runs.model(c, run.run_id, version))
        began = time.monotonic()
        try:
            found = await means.evaluator.evaluate(run.bundle_digest, model.digest, run.test_set_digest)
        except FedlessError as error:
            await self._note("evaluation_failed", round_id, reason=reason(error))
            return
        took_ms = (time.monotonic() - began) * 1000
        metrics = {f"test_{name}": value for name, value in found.metrics.items()}
        metrics["test_examples"] = float(found.examples)
        await self._store(lambda c: rounds.add_figures(c, round_id, metrics, {"evaluate": took_ms}))
        await self._note("model_evaluated", round_id, **metrics)

    # -- ending

    async def _ended(self) -> bool:
        """Whether the run is over, or paused; if it is over and nobody said so yet, says so."""
        run_id, limit = self._run.run_id, self._settings.round.abandon_limit
        record, model, last, scores = await self._store(
            lambda c: (
                runs.load(c, run_id),
                runs.newest_model(c, run_id),
                rounds.last(c, run_id, limit),
                runs.scores(c, run_id) if self._settings.stop.patience else [],
            )
        )
        if record.state is not RunState.RUNNING:
            return True
        target = self._settings.stop.test_accuracy
        accuracy = last[0].metrics.get("test_accuracy", 0.0) if last else 0.0
        if target is not None and accuracy >= target:
            await self._end(RunState.FINISHED, f"test accuracy {accuracy:.4f} reached {target:g}")
        elif stale := self._stale(scores):
            await self._end(RunState.FINISHED, stale)
        elif model.version >= self._settings.rounds:
            await self._end(RunState.FINISHED, "")
        elif len(last) == limit and all(line.phase is Phase.ABANDONED for line in last):
            await self._fail(f"{limit} rounds in a row were abandoned, the last one: {last[0].reason}")
        else:
            return False
        return True

    def _stale(self, scores: Sequence[tuple[int, Mapping[str, float]]]) -> str:
        """Why it is not worth going on; "" if it is."""
        stop = self._settings.stop
        scored = [Scored(version, metrics) for version, metrics in scores]
        return why_stop(scored, self._settings.aim(), stop.patience, stop.min_delta)

    async def _fail(self, why: str) -> None:
        for round_id in await self._store(lambda c: rounds.unended(c, self._run.run_id)):
            await self._means.coordinator.finish(round_id, e.RoundStopped(why))
        await self._end(RunState.FAILED, why)

    async def _end(self, state: RunState, why: str) -> None:
        if self._ledger is not None and state is RunState.FINISHED:
            await self._ledger.conclude()
        run_id, now = self._run.run_id, self._means.clock()

        def work(connection: Connection) -> None:
            runs.set_state(connection, run_id, state, why, now)
            masks.end_all(connection, run_id, f"run_{state.value}", now)
            history.note(connection, run_id, f"run_{state.value}", now, reason=why)

        await self._store(work)
        await self._settle()
        log.info("run_ended", run=run_id, state=state.value, reason=why)
        self._means.on_step(run_id)

    # -- small things

    async def _say(self, why: str) -> None:
        await self._store(lambda c: runs.set_reason(c, self._run.run_id, why))
        if why:
            await self._note("run_waits", reason=why)

    async def _note(self, event: str, round_id: int = 0, **fields: Any) -> None:  # noqa: ANN401 - JSON
        run_id, now = self._run.run_id, self._means.clock()
        await self._store(lambda c: history.note(c, run_id, event, now, round_id=round_id, **fields))
        self._means.on_step(run_id)

    async def _store(self, work: Callable[[Connection], T]) -> T:
        return await self._means.database.run(work)
