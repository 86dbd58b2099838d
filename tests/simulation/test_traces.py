"""A round of the real core becomes one trace: what it records is enough for spans of both sides, with their parents."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.console.traces import Traces
from fedless.protocol import trace
from tests.simulation.world import World, metrics, task

TOLD = {
    "queue": 5.0, "start": 20.0, "import": 10.0, "connect": 5.0, "check_in": 10.0, "download": 40.0, "run": 900.0,
    "instance_data": 30.0, "instance_load": 20.0, "instance_train": 800.0, "report": 60.0, "total": 1100.0,
}  # fmt: skip


async def told(world: World, client_id: str, nth: int = 1) -> None:
    ticket = await world.ticket(client_id, nth)
    await world.coordinator.put_metrics(client_id, replace(metrics(ticket.round_id), timings_ms=TOLD))


async def heard(world: World, run_id: str) -> list[RunEvent]:
    return [
        RunEvent(at_ms=e.at_ms, event=e.event, round_id=e.round_id, client_id=e.client_id, json=json.dumps(e.fields))
        async for e in world.runs.watch(run_id)
    ]  # fmt: skip


def told_round(last: Any) -> RoundInfo:
    return RoundInfo(
        round_id=last.round_id, number=last.number, state=last.state, mode=last.mode, opened_at_ms=last.opened_at_ms,
        ended_at_ms=last.ended_at_ms, reported=last.reported, metrics=last.metrics, phases_ms=last.phases_ms,
    )  # fmt: skip


async def finished(world: World) -> tuple[RunInfo, RoundInfo, list[RunEvent]]:
    """A round of four, of whom one is slow and one gives up; the fast ones tell their figures."""
    run_id = await world.start(task(size=4, minimum=2))
    for number in range(3):
        world.clock.advance(1000)
        await world.check_in(f"client-{number}")
    for number in range(2):
        world.clock.advance(2000)
        await world.report(f"client-{number}")
        await told(world, f"client-{number}")
    gone = await world.ticket("client-2")
    await world.coordinator.put_metrics("client-2", metrics(gone.round_id, "data_missing"))
    world.clock.advance(100_000)
    info = await world.ended(run_id)
    events = await heard(world, run_id)
    return RunInfo(run_id=run_id, task_name=info.task_name), told_round(info.rounds[-1]), events


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


async def evaluation(world: World, training: int) -> tuple[int, list[str]]:
    """The evaluation behind a training round: its id and both devices."""

    async def woken() -> tuple[int, list[str]] | None:
        everybody = [record.client_id for record in world.fleet.records]
        newest = {who: tickets[-1].round_id for who in everybody if (tickets := world.waker.tickets(who))}
        last = max(newest.values())
        found = [who for who, round_id in newest.items() if round_id == last]
        return (last, found) if last > training and len(found) == 2 else None

    found: tuple[int, list[str]] = await world.until(woken)
    return found


async def test_an_evaluation_on_devices_and_what_is_told_late_have_their_spans(world: World) -> None:
    """client-0 tells its training only after the run; its spans come then, and none is sent twice."""
    pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry: pip install fedless[tracing]")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    run_id = await world.start(task(size=2, minimum=2, devices=2))
    trained = await world.cohort(2)
    for client_id in trained:
        world.clock.advance(1500)
        await world.report(client_id)
    await told(world, trained[1])
    await world.phase(run_id, "committed")
    training = (await world.ticket(trained[0])).round_id
    judging, judges = await evaluation(world, training)
    for client_id in judges:
        nth = len(world.waker.tickets(client_id))
        world.clock.advance(700)
        await world.evaluate(client_id, nth)
        await told(world, client_id, nth)
    info = await world.ended(run_id)
    before = await heard(world, run_id)
    exporter = InMemorySpanExporter()
    run = RunInfo(run_id=run_id, task_name=info.task_name)
    sink = Traces("http://127.0.0.1:9", run, exporter)
    for event in before:
        sink.heard(event)
    sink.ended(run, told_round(info.rounds[-1]))
    waited = sink.waits
    assert waited, "client-0 checked in and told nothing"
    spans = exporter.get_finished_spans()
    names = {(span.name, str((span.attributes or {}).get("fedless.client", ""))) for span in spans}
    assert ("fedless.client", trained[0]) in names
    assert ("fedless.wake", trained[0]) not in {n for n in names if n[1] not in judges}
    [root] = [span for span in spans if span.name == "fedless.evaluation"]
    assert root.context.trace_id == int.from_bytes(trace.trace_id(run_id, judging))
    [whole] = [span for span in spans if span.name == "fedless.round"]
    assert [link.context.span_id for link in root.links] == [whole.context.span_id]
    [phase] = [span for span in spans if span.name == "fedless.phase.evaluate_on_devices"]
    assert [link.context.span_id for link in phase.links] == [root.context.span_id]
    assert phase.context.trace_id == whole.context.trace_id
    judged = {
        who
        for span in spans
        if span.context.trace_id == root.context.trace_id and span.name == "fedless.run"
        for who in [str((span.attributes or {})["fedless.client"])]
    }
    assert judged == set(judges)

    await told(world, trained[0])
    for event in (await heard(world, run_id))[len(before) :]:
        sink.heard(event)
    assert sink.waits != waited
    late = exporter.get_finished_spans()[len(spans) :]
    assert {span.name.removeprefix("fedless.") for span in late} == {
        "wake", "invocation", *(name for name in TOLD if name != "total")
    }  # fmt: skip
    assert {(span.attributes or {})["fedless.client"] for span in late} == {trained[0]}
    sink.close(run)
    ids = [span.context.span_id for span in exporter.get_finished_spans()]
    assert len(ids) == len(set(ids)), "each span once"
    assert ids[-len(late) :] == [span.context.span_id for span in late]
