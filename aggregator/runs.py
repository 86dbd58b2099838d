"""The runs of this fleet: start, pause, stop, show, watch, and go on after a restart.

Called by the Operator service. Each run that is not over has a driver, a paused one while it completes its last
round; the database says which.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

import structlog
from sqlalchemy import Connection

from aggregator import commit, ledger, planning, tasks
from aggregator import events as e
from aggregator.demand import Assumed
from aggregator.driver import Driver
from aggregator.interfaces import ClientRecord
from aggregator.masked import mode_of
from aggregator.means import Means
from aggregator.plan import Plan
from aggregator.planning import Package
from aggregator.store import history, masks, rounds, runs
from aggregator.store.records import GOING_ON, Invocation, ModelRecord, RunEvent, RunInfo, RunRecord, RunState
from aggregator.uploads import Spool
from fedless.protocol import wire
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode

WATCH_S = 25
STOPPED = "stopped by the operator"
PAUSED = "paused by the operator"
log = structlog.get_logger()


class Runs:
    """All runs."""

    def __init__(self, means: Means, spool: Spool, news: News) -> None:
        self._means = means
        self._spool = spool
        self._news = news
        self._drivers: dict[str, asyncio.Task[None]] = {}
        self._resumed: set[str] = set()

    async def start(
        self, task_toml: str, bundle: bytes, initial: bytes, test_set: bytes | None = None
    ) -> RunInfo:
        """Starts a run of a task file's text with blobs by digest, and answers at once.

        Raises `PeerError`: CONFIG_INVALID, UNKNOWN_BLOB, BUNDLE_*, MANIFEST_INVALID, WRONG_LENGTH or
        NOT_FINITE (initial weights), TOO_FEW (the fleet is too small for masks), MODEL_REPEATED.
        """
        means, now = self._means, self._means.clock()
        try:
            settings = tasks.parse(task_toml)
            mode_of(Mode(settings.mode), means.masked)
            if settings.privacy is not None:
                ledger.check_installed()
        except LocalError as error:  # the operator's mistake, not ours
            raise PeerError(error.code, error.detail, fix=error.fix) from error
        await self._check_masks(settings, initial)
        for digest in filter(None, (bundle, initial, test_set)):
            await asyncio.to_thread(
                means.blobs.touch, digest
            )  # so that nobody erases it before the run names it
        manifest = await asyncio.to_thread(means.evaluator.check, bundle)
        parameters = manifest.model.parameters if manifest.model else 0
        await asyncio.to_thread(commit.check_model, means.blobs, initial, parameters)
        await self._check_plan(settings, Package(manifest, bundle, means.blobs.size(bundle)))
        if test_set:
            await asyncio.to_thread(means.blobs.path, test_set)
        elif settings.test_set:
            raise PeerError(
                Code.UNKNOWN_BLOB, f"The task names a test set, {settings.test_set}; it did not come."
            )
        task = wire.task_to_bytes(
            planning.task(settings, Package(manifest, bundle, means.blobs.size(bundle)))
        )
        run_id = f"{settings.name}-{means.random(4).hex()}"
        record = RunRecord(run_id, task_toml, task, bundle, test_set or b"", RunState.RUNNING)

        def work(connection: Connection) -> RunInfo:
            runs.insert_run(connection, record, settings.name, settings.rounds, now)
            runs.insert_model(connection, run_id, ModelRecord(0, initial, 0), now)
            history.note(connection, run_id, "run_started", now, parameters=parameters)
            return runs.show(connection, run_id)

        info = await means.database.run(work)
        self._drive(record)
        return info

    async def _check_masks(self, settings: tasks.TaskSettings, initial: bytes) -> None:
        """What would make every masked round fail is said now: a fleet that is too small, weights that are spent."""
        if settings.mode == Mode.PLAIN:
            return
        earlier = await self._means.database.run(lambda c: rounds.masked_on(c, initial))
        if earlier:
            detail = f"Run {earlier} opened a masked sum over these initial weights; devices report on a model once."
            fix = f"Go on from its newest model (`fedless model export {earlier}`), or start from other weights."
            raise PeerError(Code.MODEL_REPEATED, detail, fix=fix)
        enrolled, needed = len(await self._meant(settings)), settings.secagg.minimum
        if enrolled < needed:
            detail = f"Masked rounds need {needed} enrolled clients at least; this fleet has {enrolled}."
            fix = "Enroll more; or start it with --plain: then the aggregator sees single updates, and each device must"
            raise PeerError(
                Code.TOO_FEW, detail, fix=f"{fix} allow that (`fedless-edge policy modes=plain,pairwise`)."
            )

    async def plan(
        self, settings: tasks.TaskSettings, package: Package, taken: Assumed | None = None
    ) -> Plan:
        """What a run would be like with this fleet now. Raises `PeerError(MANIFEST_INVALID)`."""
        return await planning.plan(
            settings, package, await self._known(settings, package), taken or Assumed()
        )

    async def _known(self, settings: tasks.TaskSettings, package: Package) -> planning.Known:
        means = self._means
        enrolled = await self._meant(settings)
        return await planning.look(
            means.database, enrolled, self._spool.directory, settings, package, means.clock()
        )

    async def _meant(self, settings: tasks.TaskSettings) -> list[ClientRecord]:
        """The enrolled clients that the task's labels admit."""
        return [
            record for record in await self._means.fleet.eligible() if settings.cohort.admits(record.labels)
        ]

    async def _check_plan(self, settings: tasks.TaskSettings, package: Package) -> None:
        """What cannot work is refused before it begins; clients that are too few yet may still come."""
        refused = planning.final_refusals(settings, package, await self._known(settings, package))
        if refused:
            reasons = " ".join(each.reason for each in refused)
            raise PeerError(
                refused[0].code, reasons, fix=f"Instead: {'; '.join(each.instead for each in refused)}."
            )

    async def stop(self, run_id: str) -> RunInfo:
        """Ends a run now; its open round is abandoned. An ended run stays as it is. Raises UNKNOWN_RUN."""
        means, now = self._means, self._means.clock()

        def work(connection: Connection) -> bool:
            if runs.state(connection, run_id) not in GOING_ON:
                return False
            runs.set_state(connection, run_id, RunState.STOPPED, STOPPED, now)
            masks.end_all(connection, run_id, STOPPED, now)
            return True

        if await means.database.run(work):
            await self.halt(run_id)
            await self._stop_rounds(await means.database.run(lambda c: rounds.unended(c, run_id)))
            last = await means.database.run(lambda c: rounds.newest(c, run_id))
            masked = None if last is None else means.masked.get(last.terms.mode)
            if masked is not None and last is not None:
                await masked.settle(last)
            await means.database.run(lambda c: history.note(c, run_id, "run_stopped", means.clock()))
            self._news.tell(run_id)
        return await self.show(run_id)

    async def pause(self, run_id: str) -> RunInfo:
        """Opens no more rounds of a run until `resume`, over restarts too; its open round goes on to its end.

        A paused run stays so. Raises UNKNOWN_RUN, or WRONG_STATE for one that has ended.
        """
        await self._change(run_id, RunState.PAUSED, PAUSED, "run_paused")
        return await self.show(run_id)

    async def resume(self, run_id: str) -> RunInfo:
        """Lets a paused run go on; one that runs does so anyway. Raises UNKNOWN_RUN, or WRONG_STATE if it has ended."""
        await self._change(run_id, RunState.RUNNING, "", "run_resumed")
        if run_id in self._drivers:
            self._resumed.add(run_id)  # it may be at its end already
        else:
            self._drive(await self._means.database.run(lambda c: runs.load(c, run_id)))
        return await self.show(run_id)

    async def _change(self, run_id: str, state: RunState, reason: str, event: str) -> None:
        now = self._means.clock()

        def work(connection: Connection) -> None:
            before = runs.state(connection, run_id)
            if before not in GOING_ON:
                raise PeerError(Code.WRONG_STATE, f"Run {run_id} is {before.value}.")
            if before is not state:
                runs.set_state(connection, run_id, state, reason, now)
                history.note(connection, run_id, event, now)

        await self._means.database.run(work)
        self._news.tell(run_id)

    async def list(self) -> Sequence[RunInfo]:
        """Every run, the oldest first."""
        return await self._means.database.run(runs.all_runs)

    async def show(self, run_id: str) -> RunInfo:
        """One run with its rounds. Raises UNKNOWN_RUN."""
        return await self._means.database.run(lambda c: runs.show(c, run_id))

    async def invocations(self, run_id: str) -> Sequence[Invocation]:
        """What the run's clients reported of their invocations."""
        return await self._means.database.run(lambda c: runs.invocations(c, run_id))

    async def watch(self, run_id: str, after: int = 0) -> AsyncIterator[RunEvent]:
        """Everything that happens in a run behind a sequence number; ends with the run. Raises UNKNOWN_RUN."""
        while True:
            changed = self._news.of(run_id)
            state, events = await self._means.database.run(
                lambda c: (runs.load(c, run_id).state, history.read(c, run_id, after))  # noqa: B023 - awaited here
            )
            for event in events:
                after = event.sequence
                yield event
            if not events and state not in GOING_ON and run_id not in self._drivers:
                return
            if not events:
                await changed.wait()

    async def resume_all(self) -> None:
        """At the service's start: every run that is not over goes on where it was."""
        database = self._means.database
        await self._spool.keep_only(set(await database.run(rounds.unended)))
        for run_id in await database.run(self._woken):  # a paused one may have a round to complete
            self._drive(await database.run(partial(runs.load, run_id=run_id)))
        await self._stop_rounds(await database.run(rounds.orphans))  # killed in the middle of a stop

    def _woken(self, connection: Connection) -> Sequence[str]:
        """The runs that go on; each is told of the start, and how long nothing had been written before it."""
        found, now = runs.going_on(connection), self._means.clock()
        for run_id in found:
            quiet_s = round((now - history.last_at_ms(connection, run_id)) / 1000)
            history.note(connection, run_id, "aggregator_started_again", now, quiet_s=quiet_s)
        return found

    async def close(self) -> None:
        """Stops driving; the runs go on after the next start."""
        for run_id in list(self._drivers):
            await self.halt(run_id)
        await self._means.coordinator.close()

    async def halt(self, run_id: str) -> None:
        """Stops driving a run: open rounds still take reports, nothing is committed until a new start."""
        task = self._drivers.get(run_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _stop_rounds(self, round_ids: Sequence[int]) -> None:
        for round_id in round_ids:
            await self._means.coordinator.finish(round_id, e.RoundStopped(STOPPED))

    def _drive(self, record: RunRecord) -> None:
        driver = Driver(self._means, record, tasks.parse(record.settings))
        task = asyncio.create_task(driver.drive(), name=f"run {record.run_id}")
        self._drivers[record.run_id] = task
        task.add_done_callback(lambda _task: self._forget(record))

    def _forget(self, record: RunRecord) -> None:
        run_id = record.run_id
        task = self._drivers.pop(run_id, None)
        if task is not None and not task.cancelled() and task.exception() is not None:
            log.error("driver_failed", run=run_id)
        elif task is not None and not task.cancelled() and run_id in self._resumed:
            self._resumed.discard(run_id)
            self._drive(record)
        self._news.tell(run_id)


class News:
    """Wakes those who watch a run when there is more to read."""

    def __init__(self) -> None:
        self._changed: dict[str, asyncio.Event] = {}

    def of(self, run_id: str) -> asyncio.Event:
        """Set at the next change."""
        return self._changed.setdefault(run_id, asyncio.Event())

    def tell(self, run_id: str) -> None:
        """Something changed."""
        changed = self._changed.pop(run_id, None)
        if changed is not None:
            changed.set()
