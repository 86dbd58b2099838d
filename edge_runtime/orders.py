"""What the fleet asks of this device beside rounds: install a function, call it, give a version up, renew.

Called by the participant for a verified ticket of kind INVOKE. The ticket names the order's digest, so what is done is
what was signed. Record, then speak: a result is in the journal before it is sent, and only that result is ever sent
for this order. A power cut between the call and the record means that the function is called again.

A result travels in the clear. So a function that reads this device's data is called for the fleet only where the owner
allows plain rounds; one that reads none, and inference on what the order brings, are always allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edge_runtime import bundle, calls, update
from edge_runtime.checkin import BUDGET_S
from edge_runtime.clock import unix_ms
from edge_runtime.entries import StoredAnswer
from edge_runtime.functions import FLEET, Call
from edge_runtime.invocation import Invocation
from edge_runtime.journal import Journal
from edge_runtime.link import Link, may_pass, patiently
from edge_runtime.log import say
from edge_runtime.outbox import LATE_MS
from edge_runtime.starts import Starts
from edge_runtime.timings import Timings, monotonic_ms
from fedless.protocol import wire
from fedless.protocol.errors import Code, FedlessError, PeerError
from fedless.protocol.manifest import BUILTIN_ENTRY, Manifest
from fedless.protocol.messages import ANSWER_BYTES_MAX, DONE, Action, Mode, Order, OrderResult, Ticket

if TYPE_CHECKING:
    from edge_runtime.jobs import Outcome

_REASON_MAX = 500


@dataclass
class Orders:
    """Those of one participant. `renew` gets a new certificate, and what the fleet tells with it."""

    invocation: Invocation
    journal: Journal
    starts: Starts
    renew: Callable[[Link], None]

    def carry_out(self, ticket: Ticket, timings: Timings) -> tuple[str, str]:
        """Do it, record what came of it, say so; the outcome and why, "" if it stays to be sent later.

        Raises `FedlessError` when the order itself cannot be had, or not now.
        """
        order, until = self._ask(ticket)
        result = OrderResult(ticket.round_id, ticket.nonce, DONE)
        try:
            result = self._do(order, ticket, until, timings)
        except FedlessError as error:
            if error.code in (Code.AGGREGATOR_UNREACHABLE, Code.BUSY):
                raise
            detail = " ".join(part for part in (error.detail, error.fix) if part)
            result = OrderResult(ticket.round_id, ticket.nonce, error.code.value, detail[:_REASON_MAX])
        stored = self._store(ticket, result)
        return deliver(self.invocation.link, stored, unix_ms(), BUDGET_S)

    def _ask(self, ticket: Ticket) -> tuple[Order, float]:
        """The order that was signed, and its end (monotonic ms)."""
        link = self.invocation.link
        data, deadline_at_ms, now_ms = patiently(
            lambda: link.get_order(ticket.round_id, ticket.nonce), budget_s=BUDGET_S, link=link
        )
        self.journal.set_clock(now_ms, unix_ms())
        if hashlib.sha256(data).digest() != ticket.task_digest:
            raise PeerError(Code.WRONG_DIGEST, "The order is not the one that the ticket names.")
        return wire.order_from_bytes(data), monotonic_ms() + deadline_at_ms - now_ms

    def _do(self, order: Order, ticket: Ticket, until: float, timings: Timings) -> OrderResult:
        match order.action:
            case Action.RENEW:
                self.renew(self.invocation.link)
                return OrderResult(ticket.round_id, ticket.nonce, DONE)
            case Action.ROLL_BACK:
                serves = self.starts.functions.roll_back(order.function)
                return OrderResult(ticket.round_id, ticket.nonce, DONE, version=serves.version)
            case Action.INSTALL:
                found = self._install(order, ticket)
                return OrderResult(ticket.round_id, ticket.nonce, DONE, version=found.manifest.version)
            case Action.UPDATE:
                self._update(order)
                return OrderResult(ticket.round_id, ticket.nonce, DONE)
            case Action.INVOKE:
                return self._invoke(order, ticket, until, timings)

    def _update(self, order: Order) -> None:
        """Stage the update that the order names; the agent goes on as it once this participant is done."""
        digest = update.wanted(order.event)
        with update.download(self.starts.state, digest) as file:
            for piece in self.invocation.link.fetch(digest, 0, update.BYTES_MAX):
                file.write(piece)
            update.stage(self.starts.state, update.whole(file, digest), self.invocation.identity.publishers)
        update.tell_agent()

    def _install(self, order: Order, ticket: Ticket) -> bundle.Unpacked:
        """The function's version that serves here, after the ticket's was installed. Raises `PeerError` BUNDLE_*."""
        here = self.invocation
        unpacked = here.function(ticket.bundle_digest, frozenset({ticket.bundle_digest}))
        name = unpacked.manifest.name
        if name != order.function:
            detail = f"The bundle is of {name}, not of {order.function}."
            raise PeerError(Code.MANIFEST_INVALID, detail)
        space = self.starts.space(unpacked, here.config)
        self.starts.install(unpacked, space, "", unix_ms())
        serves = self.starts.functions.current(name)
        if serves is None:
            raise PeerError(
                Code.WRONG_STATE, f"Every version of {name} here was given up.", fix="Push a new one."
            )
        if serves.digest == unpacked.digest:
            return unpacked
        return calls.unpacked(self.starts.state, serves.digest)

    def _invoke(self, order: Order, ticket: Ticket, until: float, timings: Timings) -> OrderResult:
        here, since = self.invocation, monotonic_ms()
        unpacked = self._install(order, ticket)
        manifest = unpacked.manifest
        self._may_answer(manifest)
        job = calls.job(unpacked, json.loads(order.event), self.starts, here.config)
        known = self.starts.functions.find(unpacked.digest)
        left_ms = int(until - monotonic_ms())
        if left_ms <= 0:
            raise PeerError(Code.ROUND_CLOSED, "The order's deadline passed before the function was called.")
        limit_ms = min(manifest.timeout_ms, order.timeout_ms or manifest.timeout_ms, left_ms)
        times = {"queue": timings.phases.get("queue", 0.0)}
        outcome, result = DONE, None
        try:
            model = known.model if known is not None else ""
            with self.starts.take(unpacked, model, here.config, unix_ms()) as instance:
                timings.start = instance.how
                try:
                    result = instance.run(job, timeout_ms=limit_ms)
                finally:
                    times["run"] = instance.ran_ms
            answer = _text(result)
        except FedlessError as error:
            outcome = error.code.value
            raise
        finally:
            self._note(manifest, outcome, result, times, timings, since)
        return OrderResult(
            ticket.round_id, ticket.nonce, DONE, "", answer, manifest.version, timings.start, times,
            timings.peak_rss_mb,
        )  # fmt: skip

    def _may_answer(self, manifest: Manifest) -> None:
        """Raises `PeerError(POLICY)` for a function that reads data whose owner allows no single answers."""
        reads = manifest.entry != BUILTIN_ENTRY and bool(self.invocation.config.sources(manifest))
        policy = self.invocation.identity.policy
        if reads and Mode.PLAIN not in policy.modes:
            raise PeerError(
                Code.POLICY,
                f"{manifest.name} reads this device's data, and its answer would leave in the clear.",
                fix="The device's owner can allow that: `fedless-edge policy modes=plain,pairwise,helper`.",
            )

    def _note(
        self, manifest: Manifest, outcome: str, result: Outcome | None, times: dict[str, float],
        timings: Timings, since: float,
    ) -> None:  # fmt: skip
        """The call's figures, and what it says about the version."""
        functions = self.starts.functions
        failed = Code.of(outcome) in calls.BLAME if outcome != DONE else False
        if failed or outcome == DONE:
            calls.judge(functions, manifest.name, failed=failed)
        total = monotonic_ms() - since
        if result is not None:
            timings.peak_rss_mb = result.peak_rss_mb
        times["start"] = max(0.0, total - times.get("run", 0.0))
        times["total"] = times["queue"] + total
        functions.record(
            Call(
                at_ms=unix_ms(), name=manifest.name, version=manifest.version, kind="invoke",
                start=timings.start, caller=FLEET, outcome=outcome, queue_ms=times["queue"],
                start_ms=times["start"], run_ms=times.get("run", 0.0), total_ms=times["total"],
                peak_rss_mb=timings.peak_rss_mb,
            )
        )  # fmt: skip

    def _store(self, ticket: Ticket, result: OrderResult) -> StoredAnswer:
        """In the journal, or, if the outbox is full, the fact that it did not fit."""
        text = _result_text(result)
        if self.journal.outbox_bytes() + len(text) > self.invocation.config.limits.outbox_mb << 20:
            detail = "The answer does not fit into the outbox, where reports wait for their delivery."
            text = _result_text(OrderResult(result.order_id, result.nonce, Code.DISK_FULL.value, detail))
        self.journal.store_answer(ticket.nonce, text, ticket.not_after_ms, unix_ms())
        return StoredAnswer(ticket.nonce, text, ticket.not_after_ms)


def deliver(link: Link, answer: StoredAnswer, now_ms: int, budget_s: float) -> tuple[str, str]:
    """Send one result: the outcome, and why. "" if it stays here for a later attempt."""
    result = _result(answer.result)
    try:
        patiently(lambda: link.put_order_result(result), budget_s=budget_s, link=link)
    except FedlessError as error:
        if not may_pass(error):
            return error.code.value, error.detail
        if now_ms < answer.until_ms + LATE_MS:
            return "", error.detail
        return Code.ROUND_CLOSED.value, "Nobody took the answer for a week after its deadline."
    return result.outcome, result.detail


def deliver_rest(
    link: Link, journal: Journal, now_ms: int, again: Callable[[int], None], retry_ms: int
) -> None:
    """Answers that were left here earlier, by an aggregator that was away or by a power cut."""
    for answer in journal.answers():
        outcome, detail = deliver(link, answer, now_ms, 2.0)
        say(
            "participant", "answer_offered", order=_result(answer.result).order_id, outcome=outcome or "later"
        )
        if not outcome:
            again(retry_ms)
            return
        journal.end(answer.nonce, outcome, detail, now_ms)


def _text(result: Outcome) -> str:
    """The answer as JSON. Raises `PeerError(INSTANCE_BAD_RESULT)` for one that is too long to be sent."""
    text = json.dumps(calls.value(result), separators=(",", ":"), ensure_ascii=True)
    if len(text) > ANSWER_BYTES_MAX:
        detail = f"An answer of {len(text)} bytes; {ANSWER_BYTES_MAX} can be sent."
        raise PeerError(Code.INSTANCE_BAD_RESULT, detail)
    return text


def _result_text(result: OrderResult) -> str:
    return json.dumps({**asdict(result), "nonce": result.nonce.hex()})


def _result(text: str) -> OrderResult:
    values = json.loads(text)
    return OrderResult(**{**values, "nonce": bytes.fromhex(values["nonce"])})
