"""A trace for each round, over OTLP: the aggregator's phases, each client in it, and the parts that its device timed.

Made on the workstation that watches, of events that are recorded anyway (decision 39). Parents:

    round > phase (opening to commit; the evaluation)
    round > client > wake                (from the round's opening until the device had the wake-up)
                   > invocation > queue, start, import, connect, check_in, download, agree, run, mask, report
                                             run > instance_data, instance_load, instance_train

Moments are of the aggregator's clock: a device tells how long each part took, and the aggregator when it checked in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.console.sinks import figures, needs
from fedless.protocol import trace
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

AGGREGATOR, DEVICE = "fedless-aggregator", "fedless-device"
NS_PER_MS = 1_000_000
ORDER = ("queue", "start", "import", "connect", "check_in", "download", "agree", "run", "mask", "report")
"""The parts that a device tells of an invocation, one after another."""
BEFORE = ORDER[:5]
"""Those up to the check-in, whose moment the aggregator knows."""
INSIDE = ("instance_data", "instance_load", "instance_train")
"""What the instance tells of its run, whose end they reach."""


@dataclass
class Part:
    """One client's part in a round: check-in and end (Unix ms; 0: none), what its device told (ms), what came of it."""

    checked_in: int = 0
    end: int = 0
    told: Mapping[str, float] = field(default_factory=dict)
    start: str = ""
    outcome: str = ""

    @property
    def received(self) -> float:
        """When the device had the wake-up (Unix ms)."""
        return self.checked_in - sum(self.told.get(name, 0.0) for name in BEFORE)


class Traces:
    """Sends each round to `endpoint` (OTLP over HTTP).

    Ids are derived (`fedless.protocol.trace`): a round that is sent again is the same trace.
    """

    def __init__(self, endpoint: str, run: RunInfo, exporter: SpanExporter | None = None) -> None:
        """`exporter`: where spans go instead."""
        needs("opentelemetry.sdk", "tracing")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        where = f"{endpoint.rstrip('/')}/v1/traces"
        self._exporter: SpanExporter = exporter or OTLPSpanExporter(endpoint=where, timeout=10)
        self._run_id = run.run_id
        self._events: dict[int, list[RunEvent]] = {}

    def heard(self, event: RunEvent) -> None:
        """Kept until its round ends."""
        if event.round_id:
            self._events.setdefault(event.round_id, []).append(event)

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """Sends the round's trace. Raises `LocalError(PLATFORM_UNREACHABLE)` if nobody takes it."""
        del run
        events = self._events.get(round_.round_id, [])
        for old in [round_id for round_id in self._events if round_id <= round_.round_id]:
            del self._events[old]  # with those of evaluations between
        spans = list(_Round(self._run_id, round_).spans(events))
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            raise LocalError(Code.PLATFORM_UNREACHABLE, "The traces' collector did not take the round.")

    def close(self, run: RunInfo) -> None:
        """Ends the connection."""
        del run
        self._exporter.shutdown()


class _Round:
    """The spans of one round."""

    def __init__(self, run_id: str, round_: RoundInfo) -> None:
        self._run_id = run_id
        self._round = round_

    def spans(self, events: Sequence[RunEvent]) -> Iterator[Any]:
        """Parents before their children."""
        whole = self._round
        values = {"fedless.round": whole.number, "fedless.mode": whole.mode, "fedless.state": whole.state}
        yield self._span(
            "", "round", whole.opened_at_ms, whole.ended_at_ms, values | figures(whole), parent=None
        )
        for name, begun, end in phases(whole, events):
            yield self._span(f"phase/{name}", f"phase.{name}", begun, end, {})
        for client, part in parts(events).items():
            yield from self._client(client, part)

    def _client(self, client: str, part: Part) -> Iterator[Any]:
        named = {"fedless.client": client, "fedless.outcome": part.outcome}
        opened, until = self._round.opened_at_ms, part.end or self._round.ended_at_ms
        yield self._span(client, "client", opened, until, named)
        yield self._span(f"{client}/wake", "wake", opened, part.received, named, parent=client)
        if not part.told:
            return
        at, of, own = part.received, f"{client}/invocation", named | {"fedless.start": part.start}
        total = part.told.get("total", sum(part.told.get(name, 0.0) for name in ORDER))
        yield self._span(of, "invocation", at, at + total, own, parent=client, device=client)
        for name in ORDER:
            if name in part.told:
                place, end = f"{client}/{name}", at + part.told[name]
                yield self._span(place, name, at, end, own, parent=of, device=client)
                if name == "run":
                    yield from self._instance(client, part, end, own)
                at = end

    def _instance(self, client: str, part: Part, end: float, named: Mapping[str, Any]) -> Iterator[Any]:
        at = end - sum(part.told.get(name, 0.0) for name in INSIDE)
        for name in INSIDE:
            if name in part.told:
                place, until = f"{client}/{name}", at + part.told[name]
                yield self._span(place, name, at, until, named, parent=f"{client}/run", device=client)
                at = until

    def _span(
        self, place: str, name: str, begun_ms: float, end_ms: float, values: Mapping[str, Any],
        parent: str | None = "", device: str = "",
    ) -> Any:  # fmt: skip # noqa: ANN401 - OpenTelemetry's span
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind

        service = DEVICE if device else AGGREGATOR
        who = {"service.name": service, "service.instance.id": device or self._run_id}
        return ReadableSpan(
            name=f"fedless.{name}", context=self._context(place),
            parent=None if parent is None else self._context(parent),
            resource=Resource({**who, "fedless.run": self._run_id}), attributes=dict(values),
            kind=SpanKind.INTERNAL, start_time=round(begun_ms * NS_PER_MS),
            end_time=round(max(begun_ms, end_ms) * NS_PER_MS),
        )  # fmt: skip

    def _context(self, place: str) -> Any:  # noqa: ANN401 - OpenTelemetry's context
        from opentelemetry.trace import SpanContext, TraceFlags

        of = (self._run_id, self._round.round_id)
        return SpanContext(
            int.from_bytes(trace.trace_id(*of)), int.from_bytes(trace.span_id(*of, place)), is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )  # fmt: skip


def phases(round_: RoundInfo, events: Sequence[RunEvent]) -> Iterator[tuple[str, float, float]]:
    """The round's phases as its own events tell them: name, begin, end (Unix ms); behind it the evaluation, if any."""
    begun: list[tuple[str, float]] = [("collecting", round_.opened_at_ms)]
    for event in events:
        phase = json.loads(event.json or "{}").get("phase")
        if isinstance(phase, str) and phase != begun[-1][0]:
            begun.append((phase, event.at_ms))
    begun.append(("", round_.ended_at_ms))
    for (name, at), (_, end) in pairwise(begun):
        if name not in {"committed", "abandoned"}:
            yield name, at, end
    if "evaluate" in round_.phases_ms:
        yield "evaluate", round_.ended_at_ms, round_.ended_at_ms + round_.phases_ms["evaluate"]


def parts(events: Sequence[RunEvent]) -> dict[str, Part]:
    """Each client's part, by its id."""
    found: dict[str, Part] = {}
    for event in events:
        if not event.client_id:
            continue
        part, fields = found.setdefault(event.client_id, Part(event.at_ms)), json.loads(event.json or "{}")
        if event.event == "client_checked_in":
            part.checked_in = event.at_ms
        elif event.event == "report_arrived":
            part.end, part.outcome = event.at_ms, "reported"
        elif event.event == "client_gave_up":
            part.end, part.outcome = event.at_ms, str(fields.get("reason", ""))
        elif event.event == "invocation_measured":
            part.told = {str(name): float(ms) for name, ms in fields.get("timings_ms", {}).items()}
            part.start = str(fields.get("start", ""))
    return found
