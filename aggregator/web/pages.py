"""The dashboard's pages: the store's rows in HTML, without a script and without anything from elsewhere.

Everything that is shown is escaped. A page of something that still runs asks for itself again every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from aggregator.store.records import RoundInfo, RunInfo, RunState
from aggregator.web.views import Overview
from aggregator.why import Story, seconds
from fedless import __version__

AGAIN_S = 5
WIDTH, HEIGHT, EDGE = 640.0, 120.0, 6.0
CURVES = ("test_accuracy", "device_accuracy", "train_accuracy", "test_loss", "device_loss", "train_loss")
"""Metrics of which the first that a run has is drawn."""


class Pages:
    """Renders; `fleet` is the fleet's name."""

    def __init__(self, fleet: str) -> None:
        self._environment = Environment(
            loader=PackageLoader("aggregator.web"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters |= {"moment": moment, "seconds": seconds, "size": size}
        self._common = {"fleet": fleet, "version": __version__, "again_s": AGAIN_S}

    def overview(self, shown: Overview, now_ms: int) -> str:
        """The fleet and its runs."""
        running = any(run.state is RunState.RUNNING for run in shown.runs)
        return self._render("overview.html.j2", shown=shown, now_ms=now_ms, live=running)

    def run(self, run: RunInfo, story: Story) -> str:
        """A run with its rounds."""
        live = run.state is RunState.RUNNING
        return self._render("run.html.j2", run=run, story=story, curve=curve(run.rounds), live=live)

    def round(self, run: RunInfo, number: int, story: Story) -> str:
        """One round's story."""
        shown = next(each for each in run.rounds if each.number == number)
        total = sum(each.ms for each in story.stretches) or 1.0
        return self._render(
            "round.html.j2", run=run, round=shown, story=story, total=total, live=not shown.ended_at_ms
        )

    def trouble(self, status: str, text: str) -> str:
        """An error page."""
        return self._render("trouble.html.j2", status=status, text=text, live=False)

    def _render(self, name: str, **values: Any) -> str:  # noqa: ANN401 - a template's values
        return self._environment.get_template(name).render(**self._common, **values)


def curve(rounds: Sequence[RoundInfo]) -> Mapping[str, Any] | None:
    """A metric over the rounds as points of a line (SVG units), with its last value; None with under two values."""
    for name in CURVES:
        found = [(each.number, each.metrics[name]) for each in rounds if name in each.metrics]
        if len(found) < 2:  # noqa: PLR2004 - a line has two ends
            continue
        low, high = min(value for _, value in found), max(value for _, value in found)
        first, last = found[0][0], found[-1][0]
        points = [
            (
                EDGE + (WIDTH - 2 * EDGE) * (number - first) / max(1, last - first),
                HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (value - low) / ((high - low) or 1.0),
            )
            for number, value in found
        ]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return {
            "name": name,
            "points": text,
            "low": low,
            "high": high,
            "last": found[-1][1],
            "end": points[-1],
        }
    return None


def moment(at_ms: int) -> str:
    """A Unix moment in ms for people, in UTC; "-" for 0."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if at_ms else "-"


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, most in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= most:
            return f"{count / most:.1f} {unit}"
    return f"{count} B"
