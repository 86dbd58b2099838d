"""The participant: a short-lived, trusted process. Verifies one wake-up, runs open rounds, delivers reports, exits.

The agent starts it as `python -m edge_runtime.participant --state DIR [--received MS] [--started MS] [--agent-rss MB]`
with the wake-up's bytes on standard input (none: only finish what was begun; MS are CLOCK_MONOTONIC). It answers on
standard output: `accepted` when the wake-up is durably judged, so that the broker may forget it, and `retry MS` if it
wants to be started again. Exit status 0, 1 after a `LocalError`, 75 if another participant is at work.

Rule: what is said outside is in the journal before. Imports are ordered for the cold start: the instance is started
as soon as a ticket is verified, and gRPC is imported while the instance imports its own libraries; it reads its data
and loads its graph while we connect, check in and download.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.alone import alone
from edge_runtime.clock import not_before
from edge_runtime.journal import REPORTED, Journal
from edge_runtime.kept import Kept
from edge_runtime.log import say
from edge_runtime.renewals import Renewals
from edge_runtime.reply import BUSY_EXIT, leave, log_ended, log_step, stop, write_line
from fedless.protocol.errors import Code, FedlessError

if TYPE_CHECKING:
    from edge_runtime.config import EdgeConfig
    from edge_runtime.controls import Controls
    from edge_runtime.eligibility import Verdict
    from edge_runtime.entries import OpenRound
    from edge_runtime.heads import Heads
    from edge_runtime.invocation import Invocation
    from edge_runtime.keystore import Identity
    from edge_runtime.link import Link
    from edge_runtime.outbox import Outbox
    from edge_runtime.starts import Starts
    from edge_runtime.timings import Timings
    from fedless.protocol.messages import Ticket

WAKE_BYTES_MAX = 4096
ATTEMPTS_MAX = 5
_LATER = frozenset({Code.AGGREGATOR_UNREACHABLE, Code.BUSY})
_RETRY_MS = 5_000
RUNS, EPOCH, INVOKE = frozenset({1, 2}), 4, 5  # kinds TRAIN, EVALUATE, ..., before their module is there


@dataclass(frozen=True)
class WakeUp:
    """What the agent hands over: the opaque bytes, and when (CLOCK_MONOTONIC ms) it got them and started us."""

    data: bytes
    received: float
    started: float
    agent_rss_mb: float = 0.0


@dataclass
class Participant:
    """One run over one state directory. `observe` is told each step that is complete and durable.

    `kept` is what it works with, and a lingering participant has from its last run (`linger`).
    """

    state: Path
    wake: WakeUp
    observe: Callable[[str, int], None]
    answer: Callable[[str], None]
    kept: Kept
    retry_ms: int = 0
    config: EdgeConfig = field(init=False)
    identity: Identity = field(init=False)
    outbox: Outbox = field(init=False)
    controls: Controls = field(init=False)
    heads: Heads = field(init=False)
    verdict: Verdict = field(init=False)
    _renewals: Renewals = field(init=False)
    _instance_at: float = field(init=False, default=0.0)
    _begun: bytes = field(init=False, default=b"")
    _asked: Invocation | None = field(init=False, default=None)

    @property
    def journal(self) -> Journal:
        """What this device has seen and promised."""
        return self.kept.journal

    @property
    def starts(self) -> Starts:
        """Where instances come from."""
        return self.kept.starts

    def run(self) -> None:
        """Judge the wake-up, then do all that is open. Raises `LocalError`."""
        try:
            if not self.wake.data and not self._unfinished() and not self._renewal_due():
                return
            self._load()
            if self.wake.data:
                self._judge()
            self.answer("accepted")
            self._finish()
            here = (self.starts.functions, self.wake.agent_rss_mb)
            self.identity = self._renewals.unasked(self.identity, self.now_ms(), *here)
        finally:
            self.starts.discard()
        if self.retry_ms:
            self.answer(f"retry {self.retry_ms}")

    def _unfinished(self) -> bool:
        """Whether rounds are open, or reports or answers wait for their delivery."""
        journal = self.journal
        return bool(journal.open_rounds() or journal.reports() or journal.answers())

    def _renewal_due(self) -> bool:
        from edge_runtime.keystore import Keystore

        keys = Keystore(self.state)
        return keys.enrolled and keys.load().renewal_due(self.now_ms())

    def now_ms(self) -> int:
        """The device's clock, but never before this program was built or the aggregator was last heard."""
        return not_before(self.journal.clock_floor())

    def _load(self) -> None:
        from edge_runtime.keystore import Keystore

        self.identity = Keystore(self.state).load()
        self._renewals = Renewals(self.state, self.journal, lambda: self._link(()))

    def _judge(self) -> None:
        from edge_runtime.judging import Judge

        judge = Judge(self.journal, self._renewals, self.observe, self.now_ms, self.identity)
        judge.hear(self.wake.data)
        self.identity, self._begun = judge.identity, judge.begun

    def _finish(self) -> None:
        """Run the open rounds and deliver what is finished."""
        open_rounds = self.journal.open_rounds()
        self._instance_at = time.monotonic() * 1000
        if open_rounds:
            self._start_early(open_rounds[0])  # before gRPC is imported below
        if not self._unfinished():
            return
        from edge_runtime.config import FILE, load
        from edge_runtime.telling import fit

        self.config = load(self.state / FILE)
        self.verdict = fit(self.config, self.starts.functions)
        if open_rounds and self.verdict.eligible:
            self._prepare(open_rounds[0])
        from edge_runtime.controls import Controls
        from edge_runtime.heads import FOLDER, Heads
        from edge_runtime.outbox import Outbox

        self.controls = Controls(self.state / "controls", self.journal)
        self.heads = Heads(self.state / FOLDER, self.config.limits.heads_mb << 20)
        self.outbox = Outbox(self.state / "outbox", self.journal, self.config.limits.outbox_mb << 20)
        self.outbox.clean()
        for open_round in open_rounds:
            self._round(open_round)
        self._deliver_rest()
        self.journal.prune(self.now_ms())

    def _start_early(self, open_round: OpenRound) -> None:
        from fedless.protocol import wire

        ticket = wire.ticket_from_bytes(open_round.ticket)
        if ticket.kind in RUNS | {INVOKE}:
            self.starts.early(ticket.bundle_digest.hex())

    def _prepare(self, open_round: OpenRound) -> None:
        from edge_runtime.jobs import JobKind
        from fedless.protocol import wire
        from fedless.protocol.messages import Kind

        ticket = wire.ticket_from_bytes(open_round.ticket)
        if ticket.kind in RUNS:
            kind = JobKind.TRAIN if ticket.kind is Kind.TRAIN else JobKind.EVALUATE
            self.starts.prepare(kind, ticket.bundle_digest.hex(), self.config)

    def _round(self, open_round: OpenRound) -> None:
        """One open round, to its outcome or to a later attempt."""
        from edge_runtime.timings import Timings
        from fedless.protocol import wire

        ticket = wire.ticket_from_bytes(open_round.ticket)
        begun = open_round.nonce == self._begun
        woken = self.wake.received if begun or open_round.attempts == 0 else self.wake.started
        timings = Timings(woken)
        timings.phases["queue"] = max(0.0, round(self.wake.started - woken, 3))
        timings.phases["start"] = round(self._instance_at - self.wake.started, 3)
        at = timings.lap("import", self._instance_at)
        attempt = 1 if begun else self.journal.attempt(open_round.nonce)
        with self._link(ticket.endpoints) as link:
            timings.lap("connect", at)
            outcome, detail = self._outcome(ticket, link, timings, attempt)
            if outcome:
                self._end(ticket.nonce, ticket.round_id, outcome, detail)
            log_ended(ticket.run_id, ticket.round_id, ticket.kind.name, outcome or "later", detail)
            if outcome and ticket.kind in RUNS | {INVOKE, EPOCH if outcome != REPORTED else INVOKE}:
                self._tell(link, ticket, timings, outcome)
            self._unmask(ticket)

    def _outcome(self, ticket: Ticket, link: Link, timings: Timings, attempt: int) -> tuple[str, str]:
        """Do the round; its outcome and why. "" means that it stays open, or its report in the outbox."""
        if (refusal := self._refusal(ticket, attempt)) is not None:
            return refusal
        try:
            invocation = self._invocation(link)
            if ticket.kind in RUNS:
                return self._report(ticket, invocation, timings)
            if ticket.kind == INVOKE:
                return self._order(ticket, invocation, timings)
            invocation.help(ticket)
            return REPORTED, ""
        except FedlessError as error:
            if error.code in _LATER or error.retry_after_ms:
                self.kept.links.doubt()
                self._again(error.retry_after_ms or _RETRY_MS)
                return "", error.detail
            return error.code.value, " ".join(part for part in (error.detail, error.fix) if part)
        finally:
            self.starts.discard()

    def _refusal(self, ticket: Ticket, attempt: int) -> tuple[str, str] | None:
        """Why an open round is not begun (again)."""
        if attempt > ATTEMPTS_MAX:
            return Code.INSTANCE_FAILED.value, f"It was begun {ATTEMPTS_MAX} times and never came to an end."
        if ticket.not_after_ms <= self.now_ms():
            return Code.ROUND_CLOSED.value, "Its deadline passed before it was run."
        if not self.verdict.eligible and ticket.kind in RUNS:
            return Code.NOT_NOW.value, f"This device does not train now: {self.verdict.reason}."
        return None

    def _report(self, ticket: Ticket, invocation: Invocation, timings: Timings) -> tuple[str, str]:
        """Run, store, deliver; the outcome and why, as `_outcome`."""
        from edge_runtime.checkin import BUDGET_S
        from edge_runtime.timings import monotonic_ms

        finished = invocation.run(ticket, timings)
        at = monotonic_ms()
        if finished.control_change is not None:
            self.controls.put(ticket.run_id, ticket.round_id, finished.control_change)
        report = self.outbox.store(ticket, finished.header, finished.payload, self.now_ms(), finished.masks)
        self.observe("stored", ticket.round_id)
        outcome, detail = self.outbox.deliver(invocation.link, report, self.now_ms(), BUDGET_S)
        timings.lap("report", at)
        if not outcome:
            self._again(_RETRY_MS)
        self._asked = invocation if outcome == REPORTED and finished.awaits_unmasking else None
        return outcome, detail

    def _order(self, ticket: Ticket, invocation: Invocation, timings: Timings) -> tuple[str, str]:
        """Carry an order out, store the answer, deliver it; the outcome and why, as `_outcome`."""
        from edge_runtime.orders import Orders

        orders = Orders(invocation, self.journal, self.starts, self._renew)
        outcome, detail = orders.carry_out(ticket, timings)
        if not outcome:
            self._again(_RETRY_MS)
        return outcome, detail

    def _unmask(self, ticket: Ticket) -> None:
        """A reporter waits a little for the unmask request; if it does not come, a wake-up will bring it."""
        if self._asked is None:
            return
        try:
            self._asked.answer(ticket)
        except FedlessError as error:
            self.journal.refuse(error.code, error.detail, ticket.round_id, self.now_ms())
            say("participant", "unmask_not_answered", round=ticket.round_id, code=error.code.value)
        self._asked = None

    def _invocation(self, link: Link) -> Invocation:
        from edge_runtime.cache import Cache
        from edge_runtime.invocation import Invocation

        return Invocation(
            identity=self.identity,
            config=self.config,
            journal=self.journal,
            cache=Cache(self.state / "cache", self.config.limits.cache_mb << 20),
            functions=self.state / "functions",
            link=link,
            starts=self.starts,
            observe=self.observe,
            controls=self.controls,
            heads=self.heads,
        )

    def _deliver_rest(self) -> None:
        """Reports that were left here earlier, by an aggregator that was away or by a power cut."""
        if not self.journal.reports() and not self.journal.answers():
            return
        with self._link(()) as link:
            if self.journal.answers():
                from edge_runtime.orders import deliver_rest

                deliver_rest(link, self.journal, self.now_ms(), self._again, _RETRY_MS)
            left = self.outbox.deliver_rest(link, self.now_ms(), self._end)
            if left is not None and left.until_ms > self.now_ms():
                self._again(_RETRY_MS)

    def _end(self, nonce: bytes, round_id: int, outcome: str, detail: str) -> None:
        """Write an outcome; first what hangs on whether the report is counted."""
        self.controls.settle(round_id, counted=outcome == REPORTED)
        if outcome == Code.CERTIFICATE_REVOKED.value:
            self.heads.erase()
        self.outbox.end(nonce, outcome, detail, self.now_ms())
        self.observe("ended", round_id)

    def _tell(self, link: Link, ticket: Ticket, timings: Timings, outcome: str) -> None:
        """Statistics here, metrics and profile there; then it may be time for a new certificate."""
        from edge_runtime import telling

        timings.lap("total", timings.received)
        verdict, rss_mb, functions = self.verdict, self.wake.agent_rss_mb, self.starts.functions
        ended = telling.Ended(ticket, timings, outcome, verdict, rss_mb)
        here = telling.Here(self.state, self.journal, functions, self.identity)
        if ticket.kind in RUNS:
            telling.record(functions, ended, link.bytes_down + link.bytes_up)
        telling.tell(link, here, ended)
        if self.identity.renewal_due(self.now_ms()):
            self.identity = self._renewals.try_to(link, self.identity, self.now_ms())
            telling.tell_status(link, replace(here, identity=self.identity), verdict, rss_mb)

    def _renew(self, link: Link) -> None:
        """A new certificate, and what the fleet tells with it. Raises `FedlessError`, changing nothing."""
        self.identity = self._renewals.renew(link, self.identity)

    def _link(self, endpoints: tuple[str, ...]) -> AbstractContextManager[Link]:
        return self.kept.links.open(endpoints, self.identity)

    def _again(self, after_ms: int) -> None:
        self.retry_ms = min(self.retry_ms or after_ms, after_ms)


def serve(state: Path, wake: WakeUp, observe: Callable[[str, int], None] = log_step) -> int:
    """Run once over a state directory; the exit status."""
    try:
        with alone(state), closing(Kept.open(state, lingers=False)) as kept:
            Participant(state, wake, observe, write_line, kept).run()
    except FedlessError as error:
        say("participant", "failed", code=error.code.value, why=str(error))
        return BUSY_EXIT if error.code is Code.BUSY else 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """`python -m edge_runtime.participant --state DIR ...`."""
    now = time.monotonic() * 1000
    given = _options(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, stop)
    data = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(WAKE_BYTES_MAX)
    received, started = float(given.get("received", now)), float(given.get("started", now))
    wake = WakeUp(data, received, started, float(given.get("agent-rss", 0)))
    return leave(serve(Path(given["state"]), wake))


def _options(arguments: list[str]) -> Mapping[str, str]:
    names, values = arguments[::2], arguments[1::2]
    if len(names) != len(values) or "--state" not in names or not all(n.startswith("--") for n in names):
        raise SystemExit(__doc__)
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


if __name__ == "__main__":
    sys.exit(main())
