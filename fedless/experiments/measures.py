"""*Pure.* A run's figures: events and rounds in, lines of rounds.jsonl and summary.json's numbers out.

`run` collects, `report` shows. What each key means is said in docs/experiments.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedless.experiments.charts import percentile

MEASURED = "invocation_measured"
REPORTED = "reported"
_FINAL = ("test_accuracy", "test_loss", "device_accuracy", "device_loss", "train_loss")


class Participation:
    """What became of each client in each round, gathered from the run's events one by one."""

    def __init__(self) -> None:
        self._rounds: dict[int, dict[str, dict[str, Any]]] = {}

    def take(self, event: Any) -> None:  # noqa: ANN401 - operator.proto's RunEvent
        """Note what a RunEvent says about a client."""
        if not event.client_id or not event.round_id:
            return
        client = self._rounds.setdefault(event.round_id, {}).setdefault(event.client_id, _unknown())
        fields = json.loads(event.json or "{}")
        if event.event == MEASURED:
            client.update({key: fields[key] for key in client if key in fields})
        elif event.event == "report_arrived":
            client["outcome"] = REPORTED
        elif event.event in {"client_refused", "client_gave_up", "report_spoiled"}:
            if client["outcome"] != REPORTED:
                client["outcome"] = fields.get("reason") or fields.get("code") or event.event
        elif event.event == "client_checked_in" and not client["outcome"]:
            client["outcome"] = "checked_in"

    def of(self, round_id: int) -> Mapping[str, Mapping[str, Any]]:
        """The clients of one round by id."""
        return self._rounds.get(round_id, {})

    def unmeasured(self) -> bool:
        """Whether a client reported whose invocation has not told its figures."""
        return any(
            client["outcome"] == REPORTED and not client["start"]
            for clients in self._rounds.values()
            for client in clients.values()
        )

    def reports(self, round_id: int) -> int:
        """How many reports of a round have arrived."""
        return sum(client["outcome"] == REPORTED for client in self.of(round_id).values())


def _unknown() -> dict[str, Any]:
    return {
        "outcome": "",
        "start": "",
        "timings_ms": {},
        "bytes_down": 0,
        "bytes_up": 0,
        "peak_rss_mb": 0.0,
        "participant_peak_rss_mb": 0.0,
        "agent_rss_mb": 0.0,
    }


def round_record(info: Any, clients: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:  # noqa: ANN401
    """One line of rounds.jsonl from operator.proto's RoundInfo and the round's clients."""
    return {
        "number": info.number,
        "round_id": info.round_id,
        "state": info.state,
        "reason": info.reason,
        "mode": info.mode,
        "selected": info.selected,
        "checked_in": info.checked_in,
        "reported": info.reported,
        "dropouts": info.dropouts,
        "examples": info.examples,
        "opened_at_ms": info.opened_at_ms,
        "ended_at_ms": info.ended_at_ms,
        "seconds": max(0, info.ended_at_ms - info.opened_at_ms) / 1000,
        "metrics": dict(info.metrics),
        "phases_ms": dict(info.phases_ms),
        "losses": dict(info.losses),
        "bytes_down": info.bytes_down,
        "bytes_up": info.bytes_up,
        "clients": dict(clients),
    }


def run_figures(
    rounds: Sequence[Mapping[str, Any]], parameters: int, idle_rss_mb: Sequence[float]
) -> dict[str, Any]:
    """What summary.json says about the rounds; None where nothing was measured.

    `device_peak_rss_mb` adds the peaks of a device's three processes, which need not coincide: an upper
    bound.
    """
    invocations = [client for entry in rounds for client in entry["clients"].values()]
    first = [ms for client in invocations if (ms := client["timings_ms"].get("first_step"))]
    peaks = [
        client["peak_rss_mb"] + client["participant_peak_rss_mb"] + client["agent_rss_mb"]
        for client in invocations
        if client["peak_rss_mb"]
    ]
    reported = sum(entry["reported"] for entry in rounds)
    uplink = sum(client["bytes_up"] for client in invocations if client["outcome"] == REPORTED)
    seconds = [entry["seconds"] for entry in rounds if entry["state"] == "committed"]
    return {
        **_last(rounds),
        "rounds": len(seconds),
        "dropouts": sum(entry["dropouts"] for entry in rounds),
        "round_seconds_median": _rounded(statistics.median(seconds), 3) if seconds else None,
        "wake_to_first_step_ms_p50": _rounded(percentile(first, 0.5)) if first else None,
        "wake_to_first_step_ms_p95": _rounded(percentile(first, 0.95)) if first else None,
        "device_idle_rss_mb": _rounded(statistics.median(idle_rss_mb)) if idle_rss_mb else None,
        "device_peak_rss_mb": _rounded(max(peaks)) if peaks else None,
        "uplink_bytes_per_parameter": _rounded(uplink / reported / parameters, 3) if uplink else None,
    }


def _last(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The newest value of each metric; `test_accuracy` is always there."""
    found: dict[str, float | None] = {"test_accuracy": None}
    for entry in rounds:
        found.update({name: entry["metrics"][name] for name in _FINAL if name in entry["metrics"]})
    return found


def _rounded(value: float, digits: int = 1) -> float:
    return round(value, digits)
