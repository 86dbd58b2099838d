"""The spans of one round, made of the events that are recorded anyway (decision 39); `traces` sends them.

Parents:

    round > phase (opening to commit; the evaluations)
    round > client > wake                (from the round's opening until the device had the wake-up)
                   > invocation > queue, start, import, connect, check_in, download, agree, run, mask, report
                                             run > instance_data, instance_load, instance_train (or instance_evaluate)

An evaluation on devices is a round of its own: a trace with the root `evaluation`, linked to the round whose model it
judges. Moments are of the aggregator's clock: a device tells how long each part took, the aggregator when it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fedless.console.link import RoundInfo, RunEvent
from fedless.protocol import trace

AGGREGATOR, DEVICE = "fedless-aggregator", "fedless-device"
NS_PER_MS = 1_000_000
ORDER = ("queue", "start", "import", "connect", "check_in", "download", "agree", "run", "mask", "report")
"""The parts that a device tells of an invocation, one after another."""
BEFORE = ORDER[:5]
"""Those up to the check-in, whose moment the aggregator knows."""
INSIDE = ("instance_data", "instance_load", "instance_train", "instance_evaluate")
"""What the instance tells of its run, whose end they reach."""


@dataclass
class Part:
    """One client's part in a round: check-in (or first sign, if it never `came`) and end, Unix ms, 0: none; what its
    device told (ms), and what came of it.
    """  # noqa: D205

    checked_in: int = 0
    came: bool = False
    end: int = 0
    told: Mapping[str, float] = field(default_factory=dict)
    start: str = ""
    outcome: str = ""

    @property
    def received(self) -> float:
        """When the device had the wake-up (Unix ms)."""
        return self.checked_in - sum(self.told.get(name, 0.0) for name in BEFORE)


@dataclass(frozen=True)
class Pass:
    """A round as its trace shows it: of training, or (`judges`: that round's id) an evaluation on devices. Unix ms."""

    round_id: int
    number: int
    opened_at_ms: int
    ended_at_ms: int
    values: Mapping[str, Any]
    evaluate_ms: float = 0.0
    judges: int = 0


class Spans:
    """Of one round of a run."""

    def __init__(self, run_id: str, round_: Pass, evaluation: Pass | None = None) -> None:
        """`evaluation`: the one on devices that judged the round's model."""
        self._run_id = run_id
        self._round = round_
        self._evaluation = evaluation

    def all(self, events: Sequence[RunEvent], *, final: bool) -> Iterator[tuple[str, Any]]:
        """Each span with its place in the trace, parents before their children.

        Without `final`, what hangs on figures that a client has not told yet is left out.
        """
        whole, judged = self._round, self._evaluation
        root = "evaluation" if whole.judges else "round"
        link = whole.judges
        yield self._span("", root, whole.opened_at_ms, whole.ended_at_ms, whole.values, None, link=link)
        for name, begun, end in phases(whole, events):
            yield self._span(f"phase/{name}", f"phase.{name}", begun, end, {})
        if judged is not None:
            name, begun, end = "evaluate_on_devices", judged.opened_at_ms, judged.ended_at_ms
            yield self._span(f"phase/{name}", f"phase.{name}", begun, end, {}, link=judged.round_id)
        for client, part in parts(events).items():
            yield from self._client(client, part, final=final)

    def _client(self, client: str, part: Part, *, final: bool) -> Iterator[tuple[str, Any]]:
        named = {"fedless.client": client, "fedless.outcome": part.outcome}
        opened, until = self._round.opened_at_ms, part.end or self._round.ended_at_ms
        yield self._span(client, "client", opened, until, named)
        if part.told or final:
            yield self._span(f"{client}/wake", "wake", opened, part.received, named, client)
        if not part.told:
            return
        at, of, own = part.received, f"{client}/invocation", named | {"fedless.start": part.start}
        total = part.told.get("total", sum(part.told.get(name, 0.0) for name in ORDER))
        yield self._span(of, "invocation", at, at + total, own, client, device=client)
        for name in ORDER:
            if name in part.told:
                place, end = f"{client}/{name}", at + part.told[name]
                yield self._span(place, name, at, end, own, of, device=client)
                if name == "run":
                    yield from self._instance(client, part, end, own)
                at = end

    def _instance(
        self, client: str, part: Part, end: float, named: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        at = end - sum(part.told.get(name, 0.0) for name in INSIDE)
        for name in INSIDE:
            if name in part.told:
                place, until = f"{client}/{name}", at + part.told[name]
                yield self._span(place, name, at, until, named, f"{client}/run", device=client)
                at = until

    def _span(
        self, place: str, name: str, begun_ms: float, end_ms: float, values: Mapping[str, Any],
        parent: str | None = "", *, device: str = "", link: int = 0,
    ) -> tuple[str, Any]:  # fmt: skip
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Link, SpanKind

        service, of = DEVICE if device else AGGREGATOR, self._round.round_id
        who = {"service.name": service, "service.instance.id": device or self._run_id}
        return place, ReadableSpan(
            name=f"fedless.{name}", context=self._context(of, place),
            parent=None if parent is None else self._context(of, parent),
            resource=Resource({**who, "fedless.run": self._run_id}), attributes=dict(values),
            kind=SpanKind.INTERNAL, start_time=round(begun_ms * NS_PER_MS),
            end_time=round(max(begun_ms, end_ms) * NS_PER_MS),
            links=[Link(self._context(link, ""))] if link else [],
        )  # fmt: skip

    def _context(self, round_id: int, place: str) -> Any:  # noqa: ANN401 - OpenTelemetry's context
        from opentelemetry.trace import SpanContext, TraceFlags

        of = (self._run_id, round_id)
        return SpanContext(
            int.from_bytes(trace.trace_id(*of)), int.from_bytes(trace.span_id(*of, place)), is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )  # fmt: skip


def of_training(round_: RoundInfo, values: Mapping[str, Any]) -> Pass:
    """A training round that has ended, with its figures."""
    told = {"fedless.round": round_.number, "fedless.mode": round_.mode, "fedless.state": round_.state}
    return Pass(
        round_.round_id, round_.number, round_.opened_at_ms, round_.ended_at_ms, {**told, **values},
        round_.phases_ms.get("evaluate", 0.0),
    )  # fmt: skip


def phases(round_: Pass, events: Sequence[RunEvent]) -> Iterator[tuple[str, float, float]]:
    """The round's phases as its own events tell them: name, begin, end (Unix ms); behind it the evaluation, if any."""
    begun: list[tuple[str, float]] = [("collecting", round_.opened_at_ms)]
    for event in events:
        phase = fields_of(event).get("phase")
        if isinstance(phase, str) and phase != begun[-1][0]:
            begun.append((phase, event.at_ms))
    begun.append(("", round_.ended_at_ms))
    for (name, at), (_, end) in pairwise(begun):
        if name not in {"committed", "abandoned"}:
            yield name, at, end
    if round_.evaluate_ms:
        yield "evaluate", round_.ended_at_ms, round_.ended_at_ms + round_.evaluate_ms


def parts(events: Sequence[RunEvent]) -> dict[str, Part]:
    """Each client's part, by its id."""
    found: dict[str, Part] = {}
    for event in events:
        if not event.client_id:
            continue
        part, fields = found.setdefault(event.client_id, Part(event.at_ms)), fields_of(event)
        if event.event == "client_checked_in":
            part.checked_in, part.came = event.at_ms, True
        elif event.event == "report_arrived":
            part.end, part.outcome = event.at_ms, "reported"
        elif event.event == "client_gave_up":
            part.end, part.outcome = event.at_ms, str(fields.get("reason", ""))
        elif event.event == "invocation_measured":
            part.told = {str(name): float(ms) for name, ms in fields.get("timings_ms", {}).items()}
            part.start = str(fields.get("start", ""))
    return found


def fields_of(event: RunEvent) -> dict[str, Any]:
    """What the event tells beside its name."""
    found: dict[str, Any] = json.loads(event.json or "{}")
    return found
