"""A trace for each round over OTLP, made on the workstation that watches (`spans`).

A round is sent when it has ended, an evaluation on devices too; what a device tells later is sent when it comes, with
the same parents: ids are derived (`fedless.protocol.trace`), and each span of a round is sent once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.console.sinks import figures, needs
from fedless.console.spans import Pass, Spans, fields_of, of_training, parts
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

OVER = ("committed", "abandoned")
KEPT = 32
"""Rounds whose clients may still tell something; of older ones nothing more is waited for."""


@dataclass
class _Heard:
    """One round: its events so far, what it is (None: it goes on), and the places of the spans that were sent."""

    events: list[RunEvent] = field(default_factory=list)
    whole: Pass | None = None
    evaluation: Pass | None = None
    sent: set[str] = field(default_factory=set)

    @property
    def waits(self) -> bool:
        """Whether a client checked in and has told nothing of its invocation."""
        return any(not part.told for part in parts(self.events).values() if part.came)


class Traces:
    """Sends each round to `endpoint` (OTLP over HTTP)."""

    def __init__(self, endpoint: str, run: RunInfo, exporter: SpanExporter | None = None) -> None:
        """`exporter`: where spans go instead."""
        needs("opentelemetry.sdk", "tracing")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        where = f"{endpoint.rstrip('/')}/v1/traces"
        self._exporter: SpanExporter = exporter or OTLPSpanExporter(endpoint=where, timeout=10)
        self._run_id = run.run_id
        self._rounds: dict[int, _Heard] = {}
        self._opened: dict[int, tuple[int, int]] = {}
        self._newest: dict[int, int] = {}

    @property
    def waits(self) -> bool:
        """Whether a device has yet to tell of an invocation in a round that has ended."""
        return any(heard.waits for heard in self._rounds.values() if heard.whole is not None)

    def heard(self, event: RunEvent) -> None:
        """Kept with its round; sends an evaluation that has ended, and what comes late to a round that was sent."""
        if not event.round_id:
            return
        heard = self._rounds.setdefault(event.round_id, _Heard())
        heard.events.append(event)
        told = fields_of(event)
        if event.event == "cohort_selected" and told.get("kind"):
            self._opens(event, str(told["kind"]), int(told["number"]))
        elif heard.whole is not None:
            self._send(heard, final=False)
        elif event.round_id in self._opened and told.get("phase") in OVER:
            self._judged(event, heard, str(told["phase"]))

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """Sends the round's trace. Raises `LocalError(PLATFORM_UNREACHABLE)` if nobody takes it."""
        del run
        heard = self._rounds.setdefault(round_.round_id, _Heard())
        heard.whole = of_training(round_, figures(round_))
        self._send(heard, final=False)
        for old in sorted(number for number, each in self._rounds.items() if each.whole)[:-KEPT]:
            self._send(self._rounds.pop(old), final=True)

    def close(self, run: RunInfo) -> None:
        """Sends what was waited for in vain, and ends the connection."""
        del run
        try:
            for heard in self._rounds.values():
                self._send(heard, final=True)
        finally:
            self._exporter.shutdown()

    def _opens(self, event: RunEvent, kind: str, number: int) -> None:
        if kind == "evaluate":
            self._opened[event.round_id] = (number, event.at_ms)
        else:
            self._newest[number] = event.round_id

    def _judged(self, event: RunEvent, heard: _Heard, state: str) -> None:
        """An evaluation has ended; its figures are the round's whose model it judged."""
        number, opened_at_ms = self._opened.pop(event.round_id)
        judges = self._newest.get(number, 0)
        values = {"fedless.round": number, "fedless.state": state}
        heard.whole = Pass(event.round_id, number, opened_at_ms, event.at_ms, values, judges=judges)
        if judges in self._rounds:
            self._rounds[judges].evaluation = heard.whole
        self._send(heard, final=False)

    def _send(self, heard: _Heard, *, final: bool) -> None:
        if heard.whole is None:
            return
        found = Spans(self._run_id, heard.whole, heard.evaluation).all(heard.events, final=final)
        new = {place: span for place, span in found if place not in heard.sent}
        if not new:
            return
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._exporter.export(list(new.values())) is not SpanExportResult.SUCCESS:
            raise LocalError(Code.PLATFORM_UNREACHABLE, "The traces' collector did not take the round.")
        heard.sent |= set(new)
