"""A round of the real core becomes one trace: what it records is enough for spans of both sides, with their parents."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.console.traces import Traces
from fedless.protocol import trace
from tests.simulation.world import World, metrics, task

TOLD = {
    "queue": 5.0, "start": 20.0, "import": 10.0, "connect": 5.0, "check_in": 10.0, "download": 40.0, "run": 900.0,
    "instance_data": 30.0, "instance_load": 20.0, "instance_train": 800.0, "report": 60.0, "total": 1100.0,
}  # fmt: skip


async def finished(world: World) -> tuple[RunInfo, RoundInfo, list[RunEvent]]:
    """A round of four, of whom one is slow and one gives up; the fast ones tell their figures."""
    run_id = await world.start(task(size=4, minimum=2))
    for number in range(3):
        world.clock.advance(1000)
        await world.check_in(f"client-{number}")
    for number in range(2):
        world.clock.advance(2000)
        ticket = await world.ticket(f"client-{number}")
        await world.report(f"client-{number}")
        told = replace(metrics(ticket.round_id), timings_ms=TOLD)
        await world.coordinator.put_metrics(f"client-{number}", told)
    gone = await world.ticket("client-2")
    await world.coordinator.put_metrics("client-2", metrics(gone.round_id, "data_missing"))
    world.clock.advance(100_000)
    info = await world.ended(run_id)
    events = [
        RunEvent(at_ms=e.at_ms, event=e.event, round_id=e.round_id, client_id=e.client_id, json=json.dumps(e.fields))
        async for e in world.runs.watch(run_id)
    ]  # fmt: skip
    last = info.rounds[-1]
    told_round = RoundInfo(
        round_id=last.round_id, number=last.number, state=last.state, mode=last.mode, opened_at_ms=last.opened_at_ms,
        ended_at_ms=last.ended_at_ms, reported=last.reported, metrics=last.metrics, phases_ms=last.phases_ms,
    )  # fmt: skip
    return RunInfo(run_id=run_id, task_name=info.task_name), told_round, events


async def test_a_round_of_the_core_is_one_trace_with_both_sides_spans(world: World) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry: pip install fedless[tracing]")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    run, round_, events = await finished(world)
    exporter = InMemorySpanExporter()
    sink = Traces("http://127.0.0.1:9", run, exporter)
    for event in events:
        sink.heard(event)
    sink.ended(run, round_)
    spans = exporter.get_finished_spans()
    assert {span.context.trace_id for span in spans} == {
        int.from_bytes(trace.trace_id(run.run_id, round_.round_id))
    }
    ids = {span.context.span_id: span for span in spans}
    assert len(ids) == len(spans)
    of: dict[tuple[str, str], object] = {}
    for span in spans:
        above = ids[span.parent.span_id].name if span.parent else None
        attributes = span.attributes or {}
        of[span.name.removeprefix("fedless."), str(attributes.get("fedless.client", ""))] = above
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    device = dict.fromkeys(
        ("queue", "start", "import", "connect", "check_in", "download", "run", "report"), "fedless.invocation"
    ) | dict.fromkeys(("instance_data", "instance_load", "instance_train"), "fedless.run")
    for client in ("client-0", "client-1"):
        found = {name: above for (name, who), above in of.items() if who == client}
        assert found == device | {
            "client": "fedless.round", "wake": "fedless.client", "invocation": "fedless.client"
        }  # fmt: skip
    phases = {name for name, who in of if name.startswith("phase.")}
    assert {"phase.collecting", "phase.grace", "phase.committing"} <= phases
    assert of["round", ""] is None
    lost = next(span for span in spans if (span.attributes or {}).get("fedless.client") == "client-2")
    assert (lost.attributes or {})["fedless.outcome"] == "data_missing"
    services = {str(span.resource.attributes["service.name"]) for span in spans}
    assert services == {"fedless-aggregator", "fedless-device"}
    sink.close(run)
