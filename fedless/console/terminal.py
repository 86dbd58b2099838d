"""What commands read from and show on a terminal: durations, labels, moments, tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from fedless.protocol.errors import Code, LocalError

WIDE = 250
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
FleetOption = Annotated[Path | None, typer.Option(help="The fleet's directory.")]


def duration_ms(text: str) -> int:
    """Milliseconds in "30m", "24h" or "7d"; 0 for ""."""
    if not text:
        return 0
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise LocalError(
            Code.CONFIG_INVALID, f"Expected a duration such as 60s, 30m, 24h or 7d, found {text[:40]!r}."
        )
    return int(match[1]) * UNITS_MS[match[2]]


def moment(at_ms: int) -> str:
    """A Unix moment in ms for people, in UTC; "-" for 0."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M") if at_ms else "-"


def print_table(table: Table) -> None:
    """Prints a table as wide as it is when nobody's terminal limits it."""
    console = Console()
    Console(width=console.width if console.is_terminal else WIDE).print(table)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that shows on a terminal what goes on, how much is done and of how much (0: nobody knows)."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        bars: dict[str, TaskID] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what)
            shown.update(bars[what], completed=done, total=of or None)

        yield tell


def pair(text: str) -> tuple[str, str]:
    """A label, key=value. Raises `LocalError` CONFIG_INVALID."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise LocalError(Code.CONFIG_INVALID, f"Expected --label key=value, found {text[:80]!r}.")
    return key, value


SPREAD = re.compile(r"_(p[0-9]+|worst_decile|examples|reports)$")
"""Figures that tell how others spread, or of how many they are."""


def headline(metrics: Mapping[str, float]) -> str:
    """A round's or a model's figures in one line, without those that only say how the others spread."""
    return ", ".join(
        f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if not SPREAD.search(name)
    )


def all_figures(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every figure by name; whole numbers without a fraction."""
    return [
        (name, f"{value:.0f}" if value.is_integer() and SPREAD.search(name) else f"{value:.4f}")
        for name, value in sorted(metrics.items())
    ]
