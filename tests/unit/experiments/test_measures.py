"""A run's figures from its events and rounds."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fedless.experiments.measures import MEASURED, Participation, participation, round_record, run_figures


def event(name: str, client_id: str = "edge-001", round_id: int = 7, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(event=name, client_id=client_id, round_id=round_id, json=json.dumps(fields))


def test_client_that_reported_is_reported_whatever_it_is_refused_later() -> None:
    participation = Participation()
    for name in ("client_checked_in", "report_arrived"):
        participation.take(event(name))
    participation.take(event("client_refused", code="already_reported"))
    assert participation.of(7)["edge-001"]["outcome"] == "reported"
    assert participation.reports(7) == 1
    assert participation.reports(8) == 0


def test_lost_client_has_its_reason() -> None:
    participation = Participation()
    participation.take(event("client_checked_in"))
    assert participation.of(7)["edge-001"]["outcome"] == "checked_in"
    participation.take(event("client_gave_up", reason="data_empty"))
    participation.take(event("report_spoiled", client_id="edge-002", code="not_finite"))
    outcomes = {name: client["outcome"] for name, client in participation.of(7).items()}
    assert outcomes == {"edge-001": "data_empty", "edge-002": "not_finite"}


def test_measured_invocation_is_kept_and_foreign_fields_are_not() -> None:
    participation = Participation()
    participation.take(
        event(MEASURED, start="cold", outcome="reported", bytes_up=4, timings_ms={"run": 5.0}, z=1)
    )
    client = participation.of(7)["edge-001"]
    assert (client["start"], client["bytes_up"], client["timings_ms"]) == ("cold", 4, {"run": 5.0})
    assert "z" not in client


def test_report_without_its_figures_is_unmeasured() -> None:
    participation = Participation()
    assert not participation.unmeasured()
    participation.take(event("report_arrived"))
    assert participation.unmeasured()
    participation.take(event(MEASURED, start="warm", outcome="reported"))
    assert not participation.unmeasured()


def test_events_of_no_client_are_passed_over() -> None:
    participation = Participation()
    participation.take(event("round_opened", client_id=""))
    participation.take(event("run_started", round_id=0))
    assert participation.of(7) == {}


def test_round_record_is_plain_json() -> None:
    info = SimpleNamespace(
        number=1, round_id=7, state="committed", reason="", mode="plain", selected=2, checked_in=2, reported=1,
        dropouts=1, examples=10, opened_at_ms=1000, ended_at_ms=3500, metrics={"test_accuracy": 0.5},
        phases_ms={"collecting": 1.0}, losses={"never_reported": 1}, bytes_down=1, bytes_up=2,
    )  # fmt: skip
    record = round_record(info, {"edge-001": {"outcome": "reported"}})
    assert record["seconds"] == 2.5
    assert json.loads(json.dumps(record)) == record


def test_figures_of_known_rounds(rounds: list[dict[str, Any]]) -> None:
    figures = run_figures(rounds, parameters=100, idle_rss_mb=[22.0, 23.0, 99.0])
    assert (figures["rounds"], figures["dropouts"]) == (4, 1)
    assert figures["test_accuracy"] == pytest.approx(0.9)
    assert figures["round_seconds_median"] == pytest.approx(1.502, abs=0.001)
    assert figures["device_idle_rss_mb"] == 23.0
    assert figures["device_peak_rss_mb"] == 173.0
    assert figures["uplink_bytes_per_parameter"] == 4.0
    assert 400 < figures["wake_to_first_step_ms_p50"] <= figures["wake_to_first_step_ms_p95"] < 450


def test_parts_of_an_invocation_are_medians_over_those_that_reported(rounds: list[dict[str, Any]]) -> None:
    for number, entry in enumerate(rounds, 1):
        for client in entry["clients"].values():
            client["timings_ms"] = {"run": 1000.0 * number, "first_step": 7.0}
    assert run_figures(rounds, 100, [])["invocation_seconds_median"] == {
        "run": 2.0
    }  # eleven: one did not report
    assert run_figures(rounds, 100, [])["phase_seconds_median"] == {"collecting": 1.2, "committing": 0.3}


def test_nothing_measured_is_none_and_not_zero() -> None:
    figures = run_figures([], parameters=100, idle_rss_mb=[])
    counts = [figures.pop(name) for name in ("rounds", "dropouts", "bytes_down", "bytes_up")]
    assert counts == [0, 0, 0, 0]
    assert set(figures.values()) == {None}


def test_jains_index_says_how_evenly_clients_took_part() -> None:
    """Reports 2, 1, 0 of three clients: (2 + 1)^2 / (3 * (4 + 1)) = 0.6; all alike: 1."""

    def entry(*reported: str) -> dict[str, Any]:
        clients = {name: {"outcome": "reported" if name in reported else "not_now"} for name in "abc"}
        return {"clients": clients}

    found = participation([entry("a", "b"), entry("a")])
    assert found == {"participations": {"a": 2, "b": 1, "c": 0}, "participation_jain": 0.6}
    assert participation([entry("a", "b", "c")])["participation_jain"] == 1.0
    assert participation([])["participation_jain"] is None
