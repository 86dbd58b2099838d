"""Where a run's figures go beside the terminal: TensorBoard, MLflow, and traces over OTLP.

All of it on the workstation that watches, made of what the aggregator tells anyway (`fedless run watch RUN`): it costs
the aggregator and the devices nothing, and can be had of a run that has long ended. Each takes an extra of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.protocol.errors import Code, LocalError

SERVICE = "fedless"
NS_PER_MS = 1_000_000
ORDER = ("queue", "start", "import", "connect", "check_in", "download", "agree", "run", "mask", "report")
"""The parts that a device tells of an invocation, one after another."""
BEFORE = ORDER[:5]
"""Those up to the check-in, whose moment the aggregator knows."""


class Sink(Protocol):
    """Hears each event once, in order, then each round once when it has ended; `close` at the end."""

    def heard(self, event: RunEvent) -> None:
        """An event of the run."""
        ...

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """A training round with all its figures."""
        ...

    def close(self, run: RunInfo) -> None:
        """There is no more."""
        ...


def needs(module: str, extra: str) -> None:
    """Raises `LocalError(NOT_INSTALLED)` if an extra is absent."""
    if importlib.util.find_spec(module) is None:
        raise LocalError(Code.NOT_INSTALLED, f"This takes {module}.", fix=f"Install fedless[{extra}].")


class TensorBoard:
    """Event files in `folder`/RUN: metrics, times of phases, bytes and reports by round."""

    def __init__(self, folder: Path, run_id: str) -> None:
        needs("tensorboardX", "tensorboard")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / run_id))

    def heard(self, event: RunEvent) -> None:
        """Nothing: a round's figures say it all."""

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """One point in each curve."""
        del run
        at_s = round_.ended_at_ms / 1000
        for name, value in figures(round_).items():
            self._writer.add_scalar(name, value, round_.number, walltime=at_s)

    def close(self, run: RunInfo) -> None:
        """Writes the rest."""
        del run
        self._writer.close()


class MLflow:
    """A run of MLflow in the tracking store at `uri`, a folder or an address; its experiment is the task."""

    def __init__(self, uri: str, run: RunInfo) -> None:
        needs("mlflow", "mlflow")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(run.task_name)
        experiment = known.experiment_id if known else self._client.create_experiment(run.task_name)
        tags = {"mlflow.runName": run.run_id, "fedless.run": run.run_id}
        begun = self._client.create_run(experiment, start_time=run.started_at_ms, tags=tags)
        self._id: str = begun.info.run_id
        self._client.log_param(self._id, "rounds_wanted", run.rounds_wanted)

    def heard(self, event: RunEvent) -> None:
        """Nothing: a round's figures say it all."""

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """One point of each metric."""
        del run
        for name, value in figures(round_).items():
            self._client.log_metric(self._id, name, value, timestamp=round_.ended_at_ms, step=round_.number)

    def close(self, run: RunInfo) -> None:
        """Says how the run ended."""
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(run.state, "KILLED")
        self._client.set_tag(self._id, "fedless.reason", run.reason)
        self._client.set_terminated(self._id, status, run.ended_at_ms or None)


class Traces:
    """A trace for each round, sent to `endpoint` (OTLP over HTTP): the round, its clients, and each device's own parts.

    Ids are derived from the run and the round: who sends a run again sends the same trace.
    """

    def __init__(self, endpoint: str, run: RunInfo) -> None:
        needs("opentelemetry.sdk", "tracing")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=10)
        self._resource = Resource.create({"service.name": SERVICE, "fedless.run": run.run_id})
        self._events: dict[int, list[RunEvent]] = {}

    def heard(self, event: RunEvent) -> None:
        """Kept until its round ends."""
        if event.round_id and event.client_id:
            self._events.setdefault(event.round_id, []).append(event)

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """Sends the round's trace. Raises `LocalError(PLATFORM_UNREACHABLE)` if nobody takes it."""
        spans = self._spans(run, round_, self._events.pop(round_.round_id, []))
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            raise LocalError(Code.PLATFORM_UNREACHABLE, "The traces' collector did not take the round.")

    def close(self, run: RunInfo) -> None:
        """Ends the connection."""
        del run
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _spans(self, run: RunInfo, round_: RoundInfo, events: Sequence[RunEvent]) -> list[Any]:
        key = f"{run.run_id}/{round_.round_id}"
        values = {"fedless.round": round_.number, "fedless.mode": round_.mode, "fedless.state": round_.state}
        whole = self._span(
            key, "", "round", round_.opened_at_ms, round_.ended_at_ms, values | figures(round_)
        )
        found = [whole]
        for client, (begun, end, told, outcome) in _parts(events).items():
            named = {"fedless.client": client, "fedless.outcome": outcome}
            at = begun - sum(told.get(name, 0.0) for name in BEFORE)
            until = end or round_.ended_at_ms
            found.append(self._span(key, client, "client", at, until, named, parent=""))
            for name in ORDER:
                if name in told:
                    place = f"{client}/{name}"
                    found.append(self._span(key, place, name, at, at + told[name], named, parent=client))
                    at += told[name]
        return found

    def _span(
        self, key: str, place: str, name: str, begun_ms: float, end_ms: float, values: Mapping[str, Any],
        parent: str | None = None,
    ) -> Any:  # fmt: skip # noqa: ANN401 - OpenTelemetry's span
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

        def context(where: str) -> SpanContext:
            digest = hashlib.sha256(f"{key}/{where}".encode()).digest()
            trace = hashlib.sha256(key.encode()).digest()
            flags = TraceFlags(TraceFlags.SAMPLED)
            return SpanContext(
                int.from_bytes(trace[:16]), int.from_bytes(digest[:8]), is_remote=False, trace_flags=flags
            )

        return ReadableSpan(
            name=f"fedless.{name}", context=context(place), parent=None if parent is None else context(parent),
            resource=self._resource, attributes=dict(values), kind=SpanKind.INTERNAL,
            start_time=round(begun_ms * NS_PER_MS), end_time=round(max(begun_ms, end_ms) * NS_PER_MS),
        )  # fmt: skip


def figures(round_: RoundInfo) -> dict[str, float]:
    """Everything that a round has a number for, by a name with its unit."""
    found = {f"metrics/{name}": value for name, value in round_.metrics.items()}
    found |= {f"phases_ms/{name}": value for name, value in round_.phases_ms.items()}
    found |= {f"lost/{name}": float(count) for name, count in round_.losses.items()}
    return found | {
        "round/reports": float(round_.reported),
        "round/seconds": (round_.ended_at_ms - round_.opened_at_ms) / 1000,
        "round/bytes_down": float(round_.bytes_down),
        "round/bytes_up": float(round_.bytes_up),
    }


def _parts(events: Sequence[RunEvent]) -> dict[str, tuple[int, int, dict[str, float], str]]:
    """Each client's check-in and end (Unix ms), the device's own parts (ms), and what became of it."""
    found: dict[str, tuple[int, int, dict[str, float], str]] = {}
    for event in events:
        begun, end, told, outcome = found.get(event.client_id, (event.at_ms, 0, {}, ""))
        fields = json.loads(event.json or "{}")
        if event.event == "report_arrived":
            end, outcome = event.at_ms, "reported"
        elif event.event == "client_gave_up":
            end, outcome = event.at_ms, str(fields.get("reason", ""))
        elif event.event == "invocation_measured":
            told = {str(name): float(ms) for name, ms in fields.get("timings_ms", {}).items()}
        found[event.client_id] = (begun, end, told, outcome)
    return found
