"""Figures and traces written by the sinks are read back with the tools that they are for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.console.sinks import MLflow, TensorBoard
from fedless.console.traces import Traces
from fedless.protocol import trace
from fedless.protocol.errors import Code, LocalError

T = 1_700_000_000_000
RUN = RunInfo(
    run_id="mnist-1",
    task_name="mnist",
    state="finished",
    rounds_wanted=2,
    started_at_ms=T,
    ended_at_ms=T + 9000,
)


def round_(number: int) -> RoundInfo:
    begun = T + 4000 * number
    return RoundInfo(
        round_id=number, number=number, state="committed", mode="plain", opened_at_ms=begun, ended_at_ms=begun + 3000,
        reported=2, bytes_up=800, metrics={"test_accuracy": 0.4 + number / 10},
        phases_ms={"train": 2000.0, "evaluate": 250.0},
        losses={"never_reported": 1},
    )  # fmt: skip


def event(name: str, at: int, client: str, **fields: Any) -> RunEvent:
    return RunEvent(at_ms=T + 4000 + at, event=name, round_id=1, client_id=client, json=json.dumps(fields))


EVENTS = [
    event("client_checked_in", 400, "pump-1"),
    event("client_checked_in", 500, "pump-2"),
    event("report_arrived", 2400, "pump-1", phase="grace"),
    event("client_gave_up", 2600, "pump-2", reason="data_missing", phase="grace"),
    event("grace_ended", 2700, "", phase="committing"),
    event("model_committed", 2990, "", phase="committed"),
    event(
        "invocation_measured",
        2500,
        "pump-1",
        start="cold",
        timings_ms={
            "queue": 50,
            "check_in": 150,
            "run": 1500,
            "report": 400,
            "instance_load": 50,
            "instance_train": 1000,
            "total": 2110,
        },
    ),
]


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install fedless[tensorboard]")
    from tensorboardX.proto.event_pb2 import Event

    sink = TensorBoard(tmp_path, "mnist-1")
    for number in (1, 2):
        sink.ended(RUN, round_(number))
    sink.close(RUN)
    [file] = (tmp_path / "mnist-1").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # each record: length (8), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        record = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in record.summary.value:
            found[value.tag, record.step] = (value.simple_value, record.wall_time)
    assert found["metrics/test_accuracy", 1][0] == pytest.approx(0.5)
    assert found["metrics/test_accuracy", 2][0] == pytest.approx(0.6)
    assert found["phases_ms/train", 2][0] == 2000.0
    assert found["lost/never_reported", 1][0] == 1.0
    assert found["round/seconds", 1] == (3.0, (T + 7000) / 1000)


def test_mlflow_reads_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow-skinny: pip install fedless[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    sink = MLflow(uri, RUN)
    for number in (1, 2):
        sink.ended(RUN, round_(number))
    sink.close(RUN)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mnist")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    assert found.data.tags["fedless.run"] == "mnist-1"
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "metrics/test_accuracy")
    assert [(point.step, round(point.value, 3)) for point in history] == [(1, 0.5), (2, 0.6)]


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []
        self.services: dict[str, set[tuple[str, str]]] = {}
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        import gzip

        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        assert self.path == "/v1/traces"
        for resource in request.resource_spans:
            who = {each.key: each.value.string_value for each in resource.resource.attributes}
            named = (who["service.name"], who.get("service.instance.id", ""))
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
                for span in scope.spans:
                    self.server.services.setdefault(span.name, set()).add(named)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry: pip install fedless[tracing]")
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def send(collector: Collector) -> None:
    sink = Traces(f"http://127.0.0.1:{collector.server_address[1]}", RUN)
    for each in EVENTS:
        sink.heard(each)
    sink.ended(RUN, round_(1))
    sink.close(RUN)


def by_name(collector: Collector) -> dict[tuple[str, str], Any]:
    return {(span.name, _client(span)): span for span in collector.spans}


def interval(span: Any) -> tuple[float, float]:
    """Begin and end in ms after the round's opening."""
    opened = T + 4000
    return span.start_time_unix_nano / 10**6 - opened, span.end_time_unix_nano / 10**6 - opened


def test_round_clients_and_the_devices_own_parts_are_one_trace(collector: Collector) -> None:
    send(collector)
    spans = by_name(collector)
    parents = {
        "round": None, "phase.collecting": "round", "phase.grace": "round", "phase.committing": "round",
        "phase.evaluate": "round", "client": "round", "wake": "client", "invocation": "client", "queue": "invocation",
        "check_in": "invocation", "run": "invocation", "instance_load": "run", "instance_train": "run",
        "report": "invocation",
    }  # fmt: skip
    ids = {span.span_id: span for span in collector.spans}
    assert len(ids) == len(collector.spans)
    for (name, client), span in spans.items():
        parent = parents[name.removeprefix("fedless.")]
        if parent is None:
            assert span.parent_span_id == b""
            continue
        above = ids[span.parent_span_id]
        assert above.name == f"fedless.{parent}"
        assert _client(above) in ("", client)
    assert {name for name, client in spans if client != "pump-2"} == {f"fedless.{name}" for name in parents}
    assert {span.trace_id for span in collector.spans} == {trace.trace_id("mnist-1", 1)}


def test_every_part_lies_where_it_was(collector: Collector) -> None:
    send(collector)
    spans = by_name(collector)
    expected = {
        ("round", ""): (0, 3000),
        ("phase.collecting", ""): (0, 2400),
        ("phase.grace", ""): (2400, 2700),
        ("phase.committing", ""): (2700, 2990),
        ("phase.evaluate", ""): (3000, 3250),
        ("client", "pump-1"): (0, 2400),
        ("wake", "pump-1"): (0, 200),  # it was at work before the aggregator heard of it
        ("invocation", "pump-1"): (200, 2310),
        ("check_in", "pump-1"): (250, 400),
        ("run", "pump-1"): (400, 1900),
        ("instance_load", "pump-1"): (850, 900),
        ("instance_train", "pump-1"): (900, 1900),
        ("report", "pump-1"): (1900, 2300),
        ("client", "pump-2"): (0, 2600),
    }
    for (name, client), times in expected.items():
        assert interval(spans[f"fedless.{name}", client]) == pytest.approx(times, abs=0.01), name
    assert "data_missing" in str(spans["fedless.client", "pump-2"].attributes)


def test_the_devices_parts_are_of_the_devices_service(collector: Collector) -> None:
    send(collector)
    assert collector.services["fedless.run"] == {("fedless-device", "pump-1")}
    for name in ("round", "phase.grace", "client", "wake"):
        assert collector.services[f"fedless.{name}"] == {("fedless-aggregator", "mnist-1")}


def test_a_devices_log_line_names_the_same_trace(collector: Collector) -> None:
    """The participant derives the id from its ticket: run and round."""
    send(collector)
    (found,) = {span.trace_id.hex() for span in collector.spans}
    assert trace.traceparent("mnist-1", 1).split("-")[1] == found
    whole = by_name(collector)["fedless.round", ""]
    assert trace.traceparent("mnist-1", 1).split("-")[2] == whole.span_id.hex()


def test_same_round_sent_again_is_the_same_trace(collector: Collector) -> None:
    send(collector)
    first, collector.spans = collector.spans, []
    send(collector)
    assert [span.span_id for span in collector.spans] == [span.span_id for span in first]


def test_collector_that_refuses_is_told(collector: Collector) -> None:
    collector.status = 400
    with pytest.raises(LocalError) as refusal:
        send(collector)
    assert refusal.value.code is Code.PLATFORM_UNREACHABLE


def _client(span: Any) -> str:
    found = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    return str(found.get("fedless.client", ""))
