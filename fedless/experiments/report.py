"""The report of one run: a self-contained page made from summary.json and rounds.jsonl.

`write(folder)` is called at the end of a run and by `fedless experiment report`. The page asks nothing of the
network: figures are inline SVG, styles are inline, there is no script. What a line of rounds.jsonl holds is
said in docs/experiments.md; figures whose numbers are missing are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedless.experiments import charts, ledgers
from fedless.experiments.charts import Figure
from fedless.experiments.ledgers import Table
from fedless.protocol.errors import Code, LocalError

Round = Mapping[str, Any]
SUMMARY, ROUNDS, REPORT = "summary.json", "rounds.jsonl", "report.html"
PHASES = (
    "wake",
    "train",
    "wait",
    "unmask",
    "aggregate",
    "commit",
    "evaluate",
)  # one after another; others come last
PARTS = {
    "start": ("queue", "import"),
    "join": ("enroll", "connect", "check_in"),
    "download": ("download",),
    "train": ("run",),
    "mask": ("agree", "mask"),
    "report": ("report",),
}
"""Of an invocation, one after another, with the laps of each; a function's own start is its platform's to tell."""
_MB = 1e6
_NOTICED = 0.02
_TABLES = {"cost", "anchors"}
"""Of a summary: what is shown as tables of its own."""


def write(folder: Path) -> Path:
    """Write `folder`/report.html from the folder's other files; returns its path.

    Raises `LocalError(STATE_MISSING | STATE_CORRUPT)` if those are not there or cannot be read.
    """
    summary, rounds = read(folder)
    target = folder / REPORT
    target.write_text(render(summary, rounds), encoding="utf-8")
    return target


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's summary and rounds. Raises `LocalError(STATE_MISSING | STATE_CORRUPT)`."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        lines = (folder / ROUNDS).read_text(encoding="utf-8").splitlines()
        return summary, [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        detail = f"{error.filename} does not exist: {folder} is not the folder of a finished run."
        raise LocalError(Code.STATE_MISSING, detail) from None
    except (OSError, ValueError) as error:
        raise LocalError(Code.STATE_CORRUPT, f"The run in {folder} cannot be read: {error}.") from None


def render(summary: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    """A run's whole page as HTML text."""
    name = summary["name"] + (f", {summary['variant']}" if summary.get("variant") else "")
    tables = [*ledgers.beside(summary), *ledgers.tables(summary)]
    details = _flat({key: value for key, value in summary.items() if key not in _TABLES})
    return page(name, _lead(summary, rounds), _tiles(summary), tables, figures(rounds), details)


def _lead(summary: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    masked = "reports masked" if summary["masked"] else "plain reports (no secure aggregation)"
    return (
        f"Run {summary['run_id']}, {summary['started_at']}. {summary['clients']} clients, "
        f"{summary['rounds']} rounds, {summary['parameters']} parameters, {masked}. {_not_told(rounds)}"
    ).strip()


def _not_told(rounds: Sequence[Round]) -> str:
    """Why there is no figure of single devices, where somebody might look for one."""
    if any("epsilon" in entry["metrics"] for entry in rounds):
        return "Devices tell no figures of their own: with differential privacy these would have no noise."
    if any("device_accuracy" in e["metrics"] and e["mode"] != "plain" for e in rounds):
        return (
            "How devices differ (percentiles, the worst tenth) is not told: under masks the aggregator learns the sum "
            "over all devices, and no single one's figures."
        )
    return ""


def page(
    title: str,
    lead: str,
    tiles: Sequence[tuple[str, str, str]],
    tables: Sequence[Table],
    drawn: Sequence[Figure],
    details: Sequence[tuple[str, str]],
) -> str:
    """A page as HTML text: tiles (value, unit, label), figures, tables, and at last a table of details."""
    environment = Environment(
        loader=PackageLoader("fedless.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        tiles=tiles,
        details=details,
        tables=tables,
        figures=drawn,
        width=charts.WIDTH,
        left=charts.LEFT,
        right=charts.RIGHT,
    )


def figures(rounds: Sequence[Round]) -> list[Figure]:
    """Every figure that the rounds have numbers for."""
    makers: tuple[Callable[[Sequence[Round]], Figure | None], ...] = (
        _accuracy,
        _spread,
        _loss,
        _privacy,
        _phases,
        _parts,
        _first_step,
        _bytes,
        _starts,
        _participation,
        _losses,
    )
    return [figure for maker in makers if (figure := maker(rounds))]


def _accuracy(rounds: Sequence[Round]) -> Figure | None:
    caption = (
        "Share of right answers of each round's new model, on the aggregator's test set and on the devices."
    )
    series = _metrics(
        rounds, ("test_accuracy", "device_accuracy", "device_global_accuracy", "train_accuracy")
    )
    return _lines("Accuracy per round", caption, rounds, series, limits=(0.0, 1.0))


def _spread(rounds: Sequence[Round]) -> Figure | None:
    """In plain rounds: masks hide single devices' figures."""
    caption = (
        "Accuracy of each round's new model on the devices' held-out examples: percentiles of devices, the mean of the "
        "worst tenth; with personal parameters of each device's own model (global: as it was sent)."
    )
    names = [f"device_accuracy_{what}" for what in ("p10", "p50", "p90", "worst_decile")]
    series = _metrics(rounds, (*names, "device_global_accuracy_p50", "device_global_accuracy_worst_decile"))
    return _lines("How devices differ", caption, rounds, series, limits=(0.0, 1.0))


def _loss(rounds: Sequence[Round]) -> Figure | None:
    caption = "Mean loss per example. Training loss is what the devices saw while they trained."
    series = _metrics(rounds, ("test_loss", "train_loss", "device_loss"))
    return _lines("Loss per round", caption, rounds, series)


def _privacy(rounds: Sequence[Round]) -> Figure | None:
    caption = (
        "Epsilon of the client that has spent most, at the task's delta, after each round (Renyi accounting). "
        "It counts all of its rounds, of other tasks as well."
    )
    return _lines("Privacy spent", caption, rounds, _metrics(rounds, ("epsilon",)))


def _lines(
    title: str,
    caption: str,
    rounds: Sequence[Round],
    series: Mapping[str, Sequence[float | None]],
    limits: tuple[float, float] | None = None,
) -> Figure | None:
    return charts.lines(title, caption, _numbers(rounds), series, limits=limits) if series else None


def _phases(rounds: Sequence[Round]) -> Figure | None:
    spent = [_with_waiting(entry) for entry in rounds if entry["phases_ms"]]
    if not spent:
        return None
    known = {name for phases in spent for name in phases}
    names = sorted(known, key=lambda name: (PHASES.index(name) if name in PHASES else len(PHASES), name))
    series = {name: [phases.get(name, 0.0) / 1000 for phases in spent] for name in names}
    numbers = _numbers([entry for entry in rounds if entry["phases_ms"]])
    caption = "Seconds by the aggregator's phase; wait: for clients that did not come. Evaluation follows the round."
    return charts.bars("Time per phase of a round", caption, numbers, series, unit="s")


def _with_waiting(entry: Round) -> dict[str, float]:
    """The phases of a round, ms, with what no phase accounts for as `wait`."""
    phases: dict[str, float] = dict(entry["phases_ms"])
    inside = sum(ms for name, ms in phases.items() if name != "evaluate")
    waited = entry["seconds"] * 1000 - inside
    return phases | ({"wait": waited} if waited > _NOTICED * inside else {})


def _parts(rounds: Sequence[Round]) -> Figure | None:
    """The means of an invocation's parts, for each group of clients (the ids without their numbers)."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for entry in rounds:
        for name, client in entry["clients"].items():
            if client["outcome"] == "reported" and "run" in client["timings_ms"]:
                groups.setdefault(name.rpartition("-")[0], []).append(client["timings_ms"])
    series = {
        part: [
            sum(one.get(lap, 0.0) for one in invocations for lap in laps) / len(invocations) / 1000
            for invocations in groups.values()
        ]
        for part, laps in PARTS.items()
    }
    series = {part: seconds for part, seconds in series.items() if any(seconds)}
    caption = (
        "Mean seconds of the parts of an invocation that reported, one after another, by the client's clock."
    )
    return (
        charts.bars("An invocation's parts", caption, list(groups), series, unit="s", axis="group")
        if groups
        else None
    )


def _first_step(rounds: Sequence[Round]) -> Figure | None:
    values = [ms for client in _invocations(rounds) if (ms := client["timings_ms"].get("first_step"))]
    caption = (
        "From the wake-up's arrival on the device to its first training step, in ms, over all invocations."
    )
    return charts.histogram("Wake-up to first step", caption, values, unit="ms") if values else None


def _bytes(rounds: Sequence[Round]) -> Figure | None:
    names = _clients(rounds)
    if not names:
        return None
    totals = {
        direction: [
            sum(entry["clients"].get(name, {}).get(f"bytes_{direction}", 0) for entry in rounds) / _MB
            for name in names
        ]
        for direction in ("down", "up")
    }
    caption = "MB that each client received and sent over the whole run: models, bundle, reports."
    return charts.bars("Bytes per device", caption, names, totals, unit="MB", axis="client")


def _starts(rounds: Sequence[Round]) -> Figure | None:
    counts = {
        kind: [float(sum(c["start"] == kind for c in entry["clients"].values())) for entry in rounds]
        for kind in ("cold", "warm")
    }
    if not any(map(sum, counts.values())):
        return None
    caption = "Invocations that had to start a function instance, and those that found one waiting."
    return charts.bars("Cold and warm starts", caption, _numbers(rounds), counts)


def _participation(rounds: Sequence[Round]) -> Figure | None:
    names = _clients(rounds)
    cells = {name: [entry["clients"].get(name, {}).get("outcome", "") for entry in rounds] for name in names}
    caption = "What became of each client in each round; empty: not selected, or never heard of."
    if not names:
        return None
    return charts.matrix("Participation", caption, _numbers(rounds), cells, {"reported": "s1"})


def _losses(rounds: Sequence[Round]) -> Figure | None:
    names = _keys(rounds, "losses")
    series = {name: [float(entry["losses"].get(name, 0)) for entry in rounds] for name in names}
    caption = "Clients that were selected and did not count in a round, by reason."
    return charts.bars("Losses by reason", caption, _numbers(rounds), series) if series else None


def _metrics(rounds: Sequence[Round], names: Sequence[str]) -> dict[str, list[float | None]]:
    found = {name: [entry["metrics"].get(name) for entry in rounds] for name in names}
    return {
        name.replace("_", " "): values
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def _numbers(rounds: Sequence[Round]) -> list[str]:
    return [str(entry["number"]) for entry in rounds]


def _keys(rounds: Sequence[Round], table: str) -> list[str]:
    """All keys of that table over the rounds, sorted."""
    return sorted({key for entry in rounds for key in entry[table]})


def _clients(rounds: Sequence[Round]) -> list[str]:
    return sorted({name for entry in rounds for name in entry["clients"]})


def _invocations(rounds: Sequence[Round]) -> list[Mapping[str, Any]]:
    return [client for entry in rounds for client in entry["clients"].values()]


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the reader wants to know first: value, unit, label."""
    wanted = (
        ("test_accuracy", 100.0, "%", "test accuracy"),
        ("epsilon", 1.0, "", "epsilon, worst ledger"),
        ("epsilon_pld", 1.0, "", "epsilon, tighter accounting"),
        ("rounds", 1.0, "", "rounds"),
        ("clients", 1.0, "", "clients"),
        ("round_seconds_median", 1.0, "s", "median round"),
        ("wake_to_first_step_ms_p50", 1.0, "ms", "wake-up to first step, p50"),
        ("device_idle_rss_mb", 1.0, "MB", "device memory, idle"),
        ("device_peak_rss_mb", 1.0, "MB", "device memory, peak"),
        ("uplink_bytes_per_parameter", 1.0, "B", "uplink per parameter"),
    )
    return [
        (charts.number(summary[key] * factor), unit, label)
        for key, factor, unit, label in wanted
        if summary.get(key) is not None
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The summary as rows of a table."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            rows.append((prefix + key, charts.number(value, 4)))
        else:
            rows.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
