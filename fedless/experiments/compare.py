"""Several runs side by side: one table and a page. Called by `fedless experiment compare|list` and after several runs.

A run is a folder with summary.json and rounds.jsonl. Runs may be of different experiments; what one has not is a dash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedless.experiments import charts, report
from fedless.experiments.charts import Figure, number
from fedless.experiments.ledgers import Table, aligned, dollars, shown
from fedless.experiments.measures import reached
from fedless.protocol.errors import Code, LocalError

TARGETS = (0.9, 0.95, 0.98, 0.99)
_MB = 1e6


@dataclass(frozen=True)
class Run:
    """One finished run."""

    label: str
    summary: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]


def load(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders. Raises `LocalError` as `report.read`, and CONFIG_INVALID for fewer than one."""
    if not folders:
        raise LocalError(Code.CONFIG_INVALID, "Expected the folders of the runs to compare.")
    found = [report.read(folder) for folder in folders]
    names = [_label(summary) for summary, _ in found]
    return [
        Run(name if names.count(name) == 1 else str(summary["run_id"]), summary, rounds)
        for name, (summary, rounds) in zip(names, found, strict=True)
    ]


def table(runs: Sequence[Run], targets: Sequence[float]) -> Table:
    """A row for each run: accuracy, rounds and seconds to each target, time, bytes, money and energy."""
    marks = [f"{100 * target:g}%" for target in targets]
    header = (
        "run", "strategy", "mode", "rounds", "accuracy", *(f"rounds to {mark}" for mark in marks),
        *(f"s to {mark}" for mark in marks), "median round s", "run s", "MB down", "MB up", "US$", "Wh",
    )  # fmt: skip
    rows = tuple(_row(run, targets, marks) for run in runs)
    caption = (
        "Rounds and seconds to the first evaluated model that reached an accuracy on the test set; a dash: never. "
        "Money and energy are of the clients, as each run's own report says (measured or modelled)."
    )
    return Table("The runs", caption, header, rows, first=True)


def over_seeds(runs: Sequence[Run], targets: Sequence[float]) -> Table | None:
    """A row for each variant that ran with several seeds: means and standard deviations; None if there is none."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(str(run.summary.get("variant") or run.summary["name"]), []).append(run)
    several = {name: mine for name, mine in together.items() if len(mine) > 1}
    if not several:
        return None
    marks = [f"{100 * target:g}%" for target in targets]
    header = ("variant", "seeds", "accuracy", *(f"rounds to {mark}" for mark in marks), "run s", "US$", "Wh")
    rows = tuple(_spread(name, mine, targets, marks) for name, mine in several.items())
    caption = (
        "Mean and standard deviation over the seeds; of rounds over those that got there, with their number."
    )
    return Table("Over the seeds", caption, header, rows, first=True)


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Accuracy by round, by time and by bytes; what each run took."""
    accuracy = "Test accuracy of each round's new model"
    drawn = {
        "round": {run.label: _points(run, "round") for run in runs},
        "minutes": {run.label: _points(run, "minutes") for run in runs},
        "MB up": {run.label: _points(run, "MB up") for run in runs},
    }
    captions = {
        "round": f"{accuracy}, by round.",
        "minutes": f"{accuracy}, by the time since the first round opened, on this machine.",
        "MB up": f"{accuracy}, by what all clients had sent.",
    }
    found = [
        charts.curves(
            f"Accuracy by {axis}",
            captions[axis],
            {k: v for k, v in series.items() if v},
            limits=(0.0, 1.0),
            axis=axis,
        )
        for axis, series in drawn.items()
        if any(series.values())
    ]
    names = [run.label for run in runs]
    for key, title, unit in (("usd", "Money", "US$"), ("wh", "Energy", "Wh")):
        values = [float((run.summary.get("cost") or {}).get("clients", {}).get(key, 0.0)) for run in runs]
        if any(values):
            caption = f"{title} of the clients over the whole run; each run's report says what is modelled."
            found.append(
                charts.bars(f"{title} by run", caption, names, {unit: values}, unit=unit, axis="run")
            )
    return found


def write(folders: Sequence[Path], target: Path, targets: Sequence[float] = ()) -> Path:
    """The page that compares the runs in these folders, written to `target`."""
    runs = load(folders)
    made = [table(runs, targets or TARGETS), over_seeds(runs, targets or TARGETS)]
    title = " and ".join(sorted({str(run.summary["name"]) for run in runs}))
    lead = f"{len(runs)} runs side by side."
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        report.page(f"{title}: comparison", lead, [], [one for one in made if one], figures(runs), []),
        encoding="utf-8",
    )
    return target


def text(folders: Sequence[Path], targets: Sequence[float] = ()) -> str:
    """The table alone, for a terminal; columns that no run has anything for are left out."""
    runs = load(folders)
    made = [table(runs, targets or TARGETS), over_seeds(runs, targets or TARGETS)]
    return "\n\n".join(_text(one) for one in made if one)


def _text(made: Table) -> str:
    kept = [i for i in range(len(made.header)) if any(row[i] not in ("", "-") for row in made.rows)]
    return aligned([made.header[i] for i in kept], [[row[i] for i in kept] for row in made.rows])


def listing(output: Path) -> str:
    """The finished runs in a folder, oldest first, as a table. Raises `LocalError(STATE_MISSING)`."""
    if not output.is_dir():
        raise LocalError(Code.STATE_MISSING, f"There is no folder {output}.", fix="Name it with --out DIR.")
    rows = []
    for file in sorted(output.glob(f"*/{report.SUMMARY}"), key=lambda file: file.stat().st_mtime):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a run that is being written, or no run
        rows.append(
            (
                file.parent.name, str(summary.get("started_at", "")), str(summary.get("clients", "")),
                str(summary.get("rounds", "")), shown(summary.get("test_accuracy")),
                shown(summary.get("training_seconds")),
            )
        )  # fmt: skip
    return aligned(("run", "started", "clients", "rounds", "accuracy", "seconds"), rows)


def _label(summary: Mapping[str, Any]) -> str:
    parts = (summary.get("variant") or summary["name"], *(f"s{seed}" for seed in summary.get("seeds", ())))
    return " ".join(map(str, parts))


def _row(run: Run, targets: Sequence[float], marks: Sequence[str]) -> tuple[str, ...]:
    summary, when = run.summary, reached(run.rounds, targets)
    spent = (summary.get("cost") or {}).get("clients")
    return (
        run.label,
        str(summary.get("strategy", "-")),
        str(summary.get("secagg_mode", "-")),
        str(summary["rounds"]),
        shown(summary.get("test_accuracy")),
        *(shown(when["rounds_to"][mark]) for mark in marks),
        *(shown(when["seconds_to"][mark]) for mark in marks),
        shown(summary.get("round_seconds_median")),
        shown(summary.get("training_seconds")),
        number(sum(entry["bytes_down"] for entry in run.rounds) / _MB),
        number(sum(entry["bytes_up"] for entry in run.rounds) / _MB),
        dollars(spent["usd"]) if spent else "-",
        number(spent["wh"]) if spent else "-",
    )


def _spread(
    name: str, runs: Sequence[Run], targets: Sequence[float], marks: Sequence[str]
) -> tuple[str, ...]:
    when = [reached(run.rounds, targets)["rounds_to"] for run in runs]
    spent = [(run.summary.get("cost") or {}).get("clients", {}) for run in runs]
    return (
        name,
        str(len(runs)),
        _mean([run.summary.get("test_accuracy") for run in runs]),
        *(_mean([one[mark] for one in when]) for mark in marks),
        _mean([run.summary.get("training_seconds") for run in runs]),
        _mean([one.get("usd") for one in spent]),
        _mean([one.get("wh") for one in spent]),
    )


def _mean(values: Sequence[float | None]) -> str:
    """`mean ± deviation`, with how many there are if some are missing."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    spread = f" ± {number(stdev(there))}" if len(there) > 1 else ""
    count = "" if len(there) == len(values) else f" ({len(there)} of {len(values)})"
    return f"{number(mean(there), 4)}{spread}{count}"


def _points(run: Run, axis: str) -> list[tuple[float, float]]:
    """(x, accuracy) of each evaluated round."""
    points, sent = [], 0.0
    for entry in run.rounds:
        sent += entry["bytes_up"] / _MB
        minutes = (entry["ended_at_ms"] - run.rounds[0]["opened_at_ms"]) / 60_000
        x = {"round": float(entry["number"]), "minutes": minutes, "MB up": sent}[axis]
        if "test_accuracy" in entry["metrics"]:
            points.append((x, float(entry["metrics"]["test_accuracy"])))
    return points
