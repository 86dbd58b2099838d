"""What is told when a round has ended: to this device's own statistics, and to the aggregator.

Called by the participant. Worth one attempt, never an error: a round does not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.clock import unix_ms
from edge_runtime.eligibility import Verdict, judge
from edge_runtime.functions import FLEET, Call, Functions
from edge_runtime.log import say
from edge_runtime.profile import device_status, peak_rss_mb
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import FUNCTIONS_MAX, FunctionVersion, InvocationMetrics, Kind, Ticket

if TYPE_CHECKING:
    from edge_runtime.config import EdgeConfig
    from edge_runtime.journal import Journal
    from edge_runtime.keystore import Identity
    from edge_runtime.link import Link
    from edge_runtime.timings import Timings

REPORTED = "reported"
_BEFORE_RUN = ("start", "import", "connect", "check_in", "download")


@dataclass(frozen=True)
class Ended:
    """A round that is over: `outcome` is `reported` or a code."""

    ticket: Ticket
    timings: Timings
    outcome: str
    verdict: Verdict
    agent_rss_mb: float


@dataclass(frozen=True)
class Here:
    """Whose status it is."""

    state: Path
    journal: Journal
    functions: Functions
    identity: Identity


def fit(config: EdgeConfig, functions: Functions) -> Verdict:
    """The device: may it train now?"""
    from edge_runtime import sources  # noqa: PLC0415  (after the instance was started)

    settings, now = config.eligibility, unix_ms()
    if settings.trace:
        return judge(settings.rules, sources.trace(Path(settings.trace), now), now)
    readings = sources.read(used_bytes=functions.used_bytes(today()), metered=settings.metered)
    return judge(settings.rules, readings, now)


def today() -> str:
    """The local day, for the byte budget."""
    return time.strftime("%Y-%m-%d")


def record(functions: Functions, ended: Ended, used_bytes: int) -> None:
    """Keep the invocation's figures on the device."""
    phases, digest = ended.timings.phases, ended.ticket.bundle_digest.hex()
    function = functions.find(digest)
    functions.add_bytes(today(), used_bytes)
    functions.record(
        Call(
            at_ms=unix_ms(),
            name=function.name if function else digest[:12],
            version=function.version if function else 0,
            kind=ended.ticket.kind.name.lower(),
            start=ended.timings.start,
            caller=FLEET,
            outcome=ended.outcome,
            queue_ms=phases.get("queue", 0.0),
            start_ms=sum(phases.get(name, 0.0) for name in _BEFORE_RUN),
            run_ms=phases.get("run", 0.0),
            total_ms=phases.get("total", 0.0),
            peak_rss_mb=ended.timings.peak_rss_mb,
        )
    )


def tell(link: Link, here: Here, ended: Ended) -> None:
    """Metrics of a round, or of a key epoch that was not joined; then profile and "not before T because R"."""
    if ended.ticket.kind is not Kind.INVOKE:
        _tell_metrics(link, ended)
    tell_status(link, here, ended.verdict, ended.agent_rss_mb)


def _tell_metrics(link: Link, ended: Ended) -> None:
    outcome = ended.outcome
    metrics = InvocationMetrics(
        round_id=ended.ticket.round_id,
        start=ended.timings.start,
        timings_ms=ended.timings.phases,
        bytes_down=link.bytes_down,
        bytes_up=link.bytes_up,
        peak_rss_mb=ended.timings.peak_rss_mb,
        participant_peak_rss_mb=peak_rss_mb(),
        agent_rss_mb=ended.agent_rss_mb,
        outcome=outcome if outcome == REPORTED else Code.of(outcome).value,
    )
    try:
        link.put_metrics(metrics)
    except PeerError as error:
        say("participant", "metrics_not_taken", code=error.code.value, why=error.detail)


def tell_status(link: Link, here: Here, verdict: Verdict, agent_rss_mb: float) -> None:
    """What this device is, has and trusts, and when it may train."""
    status = replace(
        device_status(here.state, agent_rss_mb, here.journal.counters()),
        not_before_ms=verdict.not_before_ms,
        not_before_reason=verdict.reason[:200],
        functions=tuple(_versions(here.functions)),
        trusts=here.identity.trusts,
        endpoints=here.identity.endpoints.fleet,
        issued_by=here.identity.issued_by,
    )
    try:
        here.journal.set_clock(link.report_status(status), unix_ms())
    except PeerError as error:
        say("participant", "status_not_taken", code=error.code.value, why=error.detail)


def _versions(functions: Functions) -> Iterator[FunctionVersion]:
    serving: dict[str, str] = {}
    for item in functions.versions()[:FUNCTIONS_MAX]:
        if not item.given_up:
            serving.setdefault(item.name, item.digest)
        serves = serving.get(item.name) == item.digest
        yield FunctionVersion(item.name, item.version, bytes.fromhex(item.digest), serves, item.given_up)
