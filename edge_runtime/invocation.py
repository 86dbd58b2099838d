"""One round of this client, from an accepted ticket to a stored report: check in, download, run, store.

Called by the participant. The instance may be running already (`starts`), so that its imports and ours overlap.
Everything that a round may be refused for is raised as `FedlessError`; the participant writes it down.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from edge_runtime import bundle
from edge_runtime.cache import Cache, remove_unused_functions
from edge_runtime.checkin import BUDGET_S, ask
from edge_runtime.clock import unix_ms
from edge_runtime.config import EdgeConfig
from edge_runtime.host import Instances, Memory, Pausing, place
from edge_runtime.jobs import Job, JobKind, Outcome, Part
from edge_runtime.keystore import Identity
from edge_runtime.link import Link, patiently
from edge_runtime.log import say
from edge_runtime.reports import check_outcome, control_change, dimension, report, split
from edge_runtime.timings import Timings, monotonic_ms
from fedless.protocol import wire
from fedless.protocol.bundle_format import MAX_BUNDLE_BYTES
from fedless.protocol.crypto import start_digest
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Encoding, Kind, Mode, Offer, ReportHeader, Task, Ticket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.controls import Controls
    from edge_runtime.heads import Heads
    from edge_runtime.masked import Masks

FUNCTIONS_KEPT = 16
"""Unpacked bundles on the disk, of all functions; of each one the newest two stay (`functions`)."""
REPORTER_WAITS_S = 30.0
"""A reporter waits this long for the unmask request before it sleeps."""
HOLDER_WAITS_S = 20.0


@dataclass(frozen=True)
class Finished:
    """A finished report: header, payload, and the state of masked rounds that is to be stored with it, if any.

    `awaits_unmasking`: the aggregator will ask for shares when all have reported. `control_change`: by how much this
    client's control variate changes if the report is counted (SCAFFOLD).
    """

    header: ReportHeader
    payload: bytes | bytearray | memoryview = field(repr=False)
    masks: tuple[bytes, bytes] | None = field(default=None, repr=False)
    awaits_unmasking: bool = False
    control_change: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass
class Invocation:
    """What one round works with. `observe` is told each step that is complete.

    `controls` and `heads` are None where nothing is kept from round to round: in a cloud function. `pausing` is None
    where a training has all the time that the round gives: on a device.
    """

    identity: Identity
    config: EdgeConfig
    journal: Memory
    cache: Cache
    functions: Path
    link: Link
    starts: Instances
    observe: Callable[[str, int], None]
    controls: Controls | None = None
    pausing: Pausing | None = None
    heads: Heads | None = None
    _masks: Masks | None = field(init=False, default=None)
    _heard: tuple[int, int] | None = field(init=False, default=None)

    def run(self, ticket: Ticket, timings: Timings) -> Finished:
        """Do the round, up to a finished report that is not stored yet.

        Raises `FedlessError`; `PeerError(UNFINISHED)` when a training is to be gone on with by a later invocation.
        """
        try:
            return self._run(ticket, timings)
        finally:
            self._settle()

    def _run(self, ticket: Ticket, timings: Timings) -> Finished:
        at = monotonic_ms()
        offer = self._check_in(ticket)
        until = monotonic_ms() + offer.deadline_at_ms - offer.now_ms
        task = self._judge(ticket, offer)
        self.observe("checked_in", ticket.round_id)
        at = timings.lap("check_in", at)
        unpacked, model, control = self._download(ticket, task)
        self.observe("downloaded", ticket.round_id)
        at = timings.lap("download", at)
        opened = None
        if task.mode is not Mode.PLAIN:
            start = start_digest(_file_digest(model), _file_digest(control) if control else b"")
            opened = self.masks().open(ticket, task, offer.round_open, start)
            at = timings.lap("agree", at)
        job = self._interrupted(self._job(ticket, task, unpacked, model, control), ticket)
        outcome = self._train(job, ticket, unpacked, until, timings)
        self.observe("trained", ticket.round_id)
        at = timings.lap("run", at)
        timings.instance(outcome)
        self._pause(ticket, outcome)
        outcome = self._keep_head(ticket, task, outcome)
        change = control_change(ticket, task, outcome)
        if opened is None:
            return Finished(report(ticket, task, offer, outcome), outcome.payload, control_change=change)
        check_outcome(outcome, 4 * dimension(ticket, task))
        masked = self.masks().mask(opened, outcome.payload, outcome.examples, outcome.sums)
        timings.lap("mask", at)
        return Finished(*masked, awaits_unmasking=task.mode is Mode.PAIRWISE, control_change=change)

    def help(self, ticket: Ticket) -> None:
        """What takes no training: the set-up of a key epoch, or shares that open a sum. Raises `FedlessError`."""
        if ticket.kind is Kind.EPOCH:
            self.identity.policy.check_mode(Mode.PAIRWISE)
            offer = self._check_in(ticket)
            self._settle()
            until = time.monotonic() + (offer.deadline_at_ms - offer.now_ms) / 1000
            self.masks().join(ticket, offer, until)
        elif not self.masks().answer(ticket.round_id, HOLDER_WAITS_S):
            raise PeerError(Code.NOT_NOW, "The aggregator did not ask for shares in time.")

    def answer(self, ticket: Ticket) -> None:
        """A reporter: wait a little for the unmask request; if it does not come, a wake-up will bring it."""
        answered = self.masks().answer(ticket.round_id, REPORTER_WAITS_S)
        say("participant", "unmask_answered" if answered else "unmask_not_asked", round=ticket.round_id)

    def masks(self) -> Masks:
        """This client's part in masked rounds."""
        from edge_runtime.masked import Masks  # noqa: PLC0415  (plain rounds do without what it imports)

        if self._masks is None:
            self._masks = Masks(self.identity, self.journal, self.link, self.observe)
        return self._masks

    def _check_in(self, ticket: Ticket) -> Offer:
        """As `checkin.ask`."""
        mark = self.journal.mask_mark()
        if mark:  # masked rounds are likely: import what they need while the aggregator thinks
            Thread(target=import_module, args=("edge_runtime.masked",), daemon=True).start()
        offer = ask(self.link, ticket, mark, rest=self.starts.rest)
        self._heard = (offer.now_ms, unix_ms())
        return offer

    def _settle(self) -> None:
        """What is to be on the disk by the end of a round, but not before anything is said: while the instance works.

        The aggregator's clock, and what was downloaded: after a power cut it is told, or asked for, once more.
        """
        heard, self._heard = self._heard, None
        if heard is not None:
            self.journal.set_clock(*heard)
        self.cache.settle()

    def _judge(self, ticket: Ticket, offer: Offer) -> Task:
        """The task, if it is the one that was signed and is allowed here."""
        if hashlib.sha256(offer.task).digest() != ticket.task_digest:
            raise PeerError(Code.WRONG_DIGEST, "The task is not the one that the ticket names.")
        task = wire.task_from_bytes(offer.task)
        if task.bundle_digest != ticket.bundle_digest:
            raise PeerError(Code.WRONG_DIGEST, "The task's bundle is not the one that the ticket names.")
        self.identity.policy.check_mode(task.mode)
        if task.rule.control and self.controls is None:
            raise PeerError(
                Code.TICKET_NOT_ALLOWED, "SCAFFOLD needs a client that keeps its control variate."
            )
        if task.personal and self.heads is None:
            detail = "Personal parameters need a client that keeps them; a cloud function does not."
            raise PeerError(Code.TICKET_NOT_ALLOWED, detail)
        if task.mode is not Mode.PLAIN:
            return task  # what a masked round asks for is signed: `Masks.open` judges it
        if offer.encoding is not Encoding.FLOAT32:
            raise PeerError(
                Code.WRONG_ENCODING, f"Expected float32 in a plain round, found {offer.encoding.name}."
            )
        expected = 4 * dimension(ticket, task)
        if offer.report_bytes != expected:
            detail = f"Expected a report of {expected} bytes, found {offer.report_bytes} asked for."
            raise PeerError(Code.WRONG_LENGTH, detail)
        return task

    def _download(self, ticket: Ticket, task: Task) -> tuple[bundle.Unpacked, Path, Path | None]:
        """Bundle and model (and control variate), beside each other; what is here already is not asked for."""
        with ThreadPoolExecutor(2, "download") as pool:
            keep = frozenset({ticket.bundle_digest, ticket.model_digest, ticket.control_digest})
            size = 4 * task.parameters
            model = pool.submit(self._blob, ticket.model_digest, size, keep)
            control = None
            if task.rule.control and ticket.control_digest:
                control = pool.submit(self._blob, ticket.control_digest, size, keep)
            unpacked = self.function(ticket.bundle_digest, keep)
            return unpacked, model.result(), control.result() if control else None

    def function(self, digest: bytes, keep: frozenset[bytes]) -> bundle.Unpacked:
        """A bundle, verified and unpacked; asked for if it is not here. Raises BUNDLE_*, UNKNOWN_BLOB, DISK_FULL."""
        unpacked = bundle.find(self.functions, digest.hex())
        if unpacked is None:
            data = self._blob(digest, MAX_BUNDLE_BYTES, keep).read_bytes()
            # The mark of the newest version is judged by name, which only the verified manifest tells.
            manifest, _ = bundle.verify(data, digest.hex(), self.identity.publishers)
            newest = self.journal.newest_version(manifest.name)
            unpacked = bundle.unpack(data, digest.hex(), self.identity.publishers, self.functions, newest)
            remove_unused_functions(self.functions, keep, FUNCTIONS_KEPT)
        self.journal.saw_version(unpacked.manifest.name, unpacked.manifest.version)
        return unpacked

    def _blob(self, digest: bytes, limit_bytes: int, keep: frozenset[bytes]) -> Path:
        found = self.cache.find(digest)
        if found is not None:
            return found
        return patiently(lambda: self._fetch(digest, limit_bytes, keep), budget_s=BUDGET_S, link=self.link)

    def _fetch(self, digest: bytes, limit_bytes: int, keep: frozenset[bytes]) -> Path:
        with self.cache.part(digest) as part:
            self.cache.make_room(0, keep)
            for data in self.link.fetch(digest, part.offset, limit_bytes):
                self.cache.make_room(len(data), keep)
                part.write(data)
            return part.finish()

    def _job(
        self, ticket: Ticket, task: Task, unpacked: bundle.Unpacked, model: Path, control: Path | None
    ) -> Job:
        """What the instance shall do. Raises `PeerError` MANIFEST_INVALID."""
        manifest = unpacked.manifest
        if manifest.model is None or manifest.model.parameters != task.parameters:
            found = "no model" if manifest.model is None else f"{manifest.model.parameters} parameters"
            raise PeerError(
                Code.MANIFEST_INVALID, f"Expected a model of {task.parameters} parameters, found {found}."
            )
        own = None
        if self.controls is not None and task.rule.control:
            own = self.controls.own(ticket.run_id, task.parameters)
        head = self._head(ticket, task)
        held_out = Part.HELD_OUT if ticket.kind is Kind.EVALUATE else Part.TRAINING
        kind = JobKind.TRAIN if ticket.kind is Kind.TRAIN else JobKind.EVALUATE
        return Job(
            **vars(place(kind, unpacked, self.config, self.starts)),
            parameters=str(model.absolute()),
            rule=task.rule,
            part=held_out if task.holdout > 0 else Part.ALL,
            holdout=task.holdout,
            control=str(control.absolute()) if control else "",
            own_control=str(own.absolute()) if own else "",
            personal=task.personal,
            head=str(head.absolute()) if head else "",
        )

    def _head(self, ticket: Ticket, task: Task) -> Path | None:
        """This client's personal parameters, if it has some. Raises `LocalError(DISK_FULL)` where they may not stay."""
        if self.heads is None:
            return None
        self.heads.serve(ticket.bundle_digest.hex(), ticket.run_id if task.personal else "")
        if not task.personal:
            return None
        self.heads.check_room(task.layout)
        before = ticket.round_id if ticket.kind is Kind.TRAIN else 0
        return self.heads.own(ticket.run_id, task.layout, before)

    def _keep_head(self, ticket: Ticket, task: Task, outcome: Outcome) -> Outcome:
        """The outcome without the new head, which stays here: nothing behind this line sees it."""
        if self.heads is None or not task.personal or ticket.kind is not Kind.TRAIN:
            return outcome
        check_outcome(outcome, 4 * (dimension(ticket, task) + task.layout.own))
        update, head = split(outcome.payload, 4 * dimension(ticket, task))
        self.heads.put(ticket.run_id, ticket.round_id, ticket.bundle_digest.hex(), task.layout, head)
        return replace(outcome, payload=update)

    def _interrupted(self, job: Job, ticket: Ticket) -> Job:
        """The job, bounded and gone on with where this host cannot train for long."""
        if self.pausing is None or job.kind is not JobKind.TRAIN:
            return job
        state = self.pausing.load(ticket)
        return replace(
            job, stop_after_ms=self.pausing.stop_after_ms(), state=str(state.absolute()) if state else ""
        )

    def _pause(self, ticket: Ticket, outcome: Outcome) -> None:
        """Keeps a training that stopped for want of time, and says so by raising."""
        if not outcome.unfinished:
            return
        if self.pausing is None:
            raise PeerError(Code.INSTANCE_BAD_RESULT, "It stopped without having been asked to.")
        self.pausing.keep(ticket, outcome.payload)
        raise PeerError(Code.UNFINISHED, f"{outcome.steps} steps are done.")

    def _train(
        self, job: Job, ticket: Ticket, unpacked: bundle.Unpacked, until: float, timings: Timings
    ) -> Outcome:
        """Give the instance its job, bounded by the manifest's time and the round's deadline."""

        def on_event(event: Mapping[str, Any]) -> None:
            if event.get("event") == "started":
                self._settle()
            elif event.get("event") == "first_step":
                timings.phases["first_step"] = round(float(event["monotonic_ms"]) - timings.received, 3)

        left_ms = max(1, int(until - monotonic_ms()))
        model = ticket.model_digest.hex()
        with self.starts.take(unpacked, model, self.config, unix_ms(), job.place) as instance:
            timings.start = instance.how
            limit_ms = min(unpacked.manifest.timeout_ms, left_ms)
            return instance.run(job, timeout_ms=limit_ms, on_event=on_event)


def _file_digest(path: Path) -> bytes:
    """SHA-256 of the model that is really here: a masked report is bound to it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
