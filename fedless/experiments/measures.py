"""*Pure.* A run's figures: events and rounds in, lines of rounds.jsonl and summary.json's numbers out.

`run` collects, `report` shows. What each key means is said in docs/experiments.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedless.experiments.charts import percentile

MEASURED = "invocation_measured"
ENDED = "invocation_ended"
REPORTED = "reported"
LOST = {
    "client_refused",
    "client_gave_up",
    "report_spoiled",
    "invocation_failed",
    "invocation_given_up",
}
_BILLED = (
    "platform", "figures", "attempts", "took_ms", "run_ms", "billed_ms", "init_ms", "wait_ms", "memory_mb", "usd",
    "gb_s", "measured",
)  # fmt: skip
_FINAL = (
    "test_accuracy", "test_loss", "device_accuracy", "device_loss", "train_loss", "epsilon", "epsilon_pld",
)  # fmt: skip


class Participation:
    """What became of each client in each round, gathered from the run's events one by one.

    `functions` are the ids of the clients whose platform has a bill to tell, too.
    """

    def __init__(self, functions: Collection[str] = ()) -> None:
        self._functions = frozenset(functions)
        self._rounds: dict[int, dict[str, dict[str, Any]]] = {}

    def take(self, event: Any) -> None:  # noqa: ANN401 - operator.proto's RunEvent
        """Note what a RunEvent says about a client."""
        if not event.client_id or not event.round_id:
            return
        client = self._rounds.setdefault(event.round_id, {}).setdefault(event.client_id, _unknown())
        fields = json.loads(event.json or "{}")
        if event.event == MEASURED:
            client.update({key: fields[key] for key in client if key in fields})
        elif event.event == ENDED:
            client["bill"] = {key: fields[key] for key in _BILLED if key in fields}
        elif event.event == "report_arrived":
            client["outcome"] = REPORTED
        elif event.event in LOST:
            if client["outcome"] != REPORTED:
                client["outcome"] = _why(event.event, fields)
        elif event.event == "client_checked_in" and not client["outcome"]:
            client["outcome"] = "checked_in"

    def of(self, round_id: int) -> Mapping[str, Mapping[str, Any]]:
        """The clients of one round by id."""
        return self._rounds.get(round_id, {})

    def unmeasured(self) -> bool:
        """Whether a client reported whose invocation has not told its figures, or its platform its bill."""
        return any(
            client["outcome"] == REPORTED
            and not (client["start"] and (client["bill"] or name not in self._functions))
            for clients in self._rounds.values()
            for name, client in clients.items()
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
        "bill": {},
    }


def _why(event: str, fields: Mapping[str, Any]) -> str:
    """Why a client was lost; an invocation's reason is a sentence, its code is enough here."""
    first, second = ("code", "reason") if event.startswith("invocation") else ("reason", "code")
    return str(fields.get(first) or fields.get(second) or event)


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
        **participation(rounds),
        "rounds": len(seconds),
        "dropouts": sum(entry["dropouts"] for entry in rounds),
        "bytes_down": sum(entry["bytes_down"] for entry in rounds),
        "bytes_up": sum(entry["bytes_up"] for entry in rounds),
        "round_seconds_median": _rounded(statistics.median(seconds), 3) if seconds else None,
        "phase_seconds_median": _phases([entry for entry in rounds if entry["state"] == "committed"]),
        "invocation_seconds_median": _laps(invocations),
        "wake_to_first_step_ms_p50": _rounded(percentile(first, 0.5)) if first else None,
        "wake_to_first_step_ms_p95": _rounded(percentile(first, 0.95)) if first else None,
        "device_idle_rss_mb": _rounded(statistics.median(idle_rss_mb)) if idle_rss_mb else None,
        "device_peak_rss_mb": _rounded(max(peaks)) if peaks else None,
        "uplink_bytes_per_parameter": _rounded(uplink / reported / parameters, 3) if uplink else None,
    }


def reached(rounds: Sequence[Mapping[str, Any]], targets: Sequence[float]) -> dict[str, Any]:
    """When each test accuracy was first reached: the round's number, and seconds since the first round's opening.

    Keys are `95%`; None where it was not reached. Empty without targets.
    """
    if not targets:
        return {}
    found: dict[str, dict[str, Any]] = {"rounds_to": {}, "seconds_to": {}}
    for target in targets:
        there = [one for one in rounds if one["metrics"].get("test_accuracy", 0.0) >= target]
        name = f"{100 * target:g}%"
        found["rounds_to"][name] = there[0]["number"] if there else None
        since = (there[0]["ended_at_ms"] - rounds[0]["opened_at_ms"]) / 1000 if there else None
        found["seconds_to"][name] = since
    return found


def _laps(invocations: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Median seconds of each part of the invocations that reported, and of the whole (`total`)."""
    there = [one["timings_ms"] for one in invocations if one["outcome"] == REPORTED and one["timings_ms"]]
    names = sorted({name for laps in there for name in laps} - {"first_step"})
    found = {name: [laps[name] for laps in there if name in laps] for name in names}
    return {name: _rounded(statistics.median(values) / 1000, 3) for name, values in found.items()} or None


def _phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Median seconds of each of the aggregator's phases over the rounds that have it; None without rounds."""
    names = sorted({name for entry in rounds for name in entry["phases_ms"]})
    found = {name: [one["phases_ms"][name] for one in rounds if name in one["phases_ms"]] for name in names}
    return {name: _rounded(statistics.median(values) / 1000, 3) for name, values in found.items()} or None


def participation(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How evenly reports came from the clients that were ever heard of.

    `participation_jain` is Jain's index, (sum x)^2 / (n sum x^2) over each client's counted reports x: 1 where all
    took part alike, 1/n where one did everything (Jain, Chiu, Hawe, A Quantitative Measure of Fairness, 1984).
    """
    names = sorted({name for entry in rounds for name in entry["clients"]})
    counts = {
        name: sum(entry["clients"].get(name, {}).get("outcome") == REPORTED for entry in rounds)
        for name in names
    }
    squares = sum(count * count for count in counts.values())
    return {
        "participations": counts or None,
        "participation_jain": _rounded(sum(counts.values()) ** 2 / (len(counts) * squares), 4)
        if squares
        else None,
    }


def _last(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The newest value of each metric; `test_accuracy` is always there."""
    found: dict[str, float | None] = {"test_accuracy": None}
    for entry in rounds:
        found.update({name: entry["metrics"][name] for name in _FINAL if name in entry["metrics"]})
    return found


def _rounded(value: float, digits: int = 1) -> float:
    return round(value, digits)
