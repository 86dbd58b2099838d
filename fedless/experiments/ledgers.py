"""*Pure.* The tables of a report: what each group took and cost, what it could have cost, our figures beside others'.

`report` shows them; the numbers are the `cost` and the `anchors` of summary.json. Every amount says whether it is
measured or modelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedless.experiments.charts import number

_MB = 1e6


@dataclass(frozen=True)
class Table:
    """A table of texts under a title; the last column may be long. `first`: above the figures, not below them."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    first: bool = False


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The accounts; none for a run from before there were any."""
    cost = summary.get("cost")
    return [_groups(cost), _otherwise(cost)] if cost else []


def beside(summary: Mapping[str, Any]) -> list[Table]:
    """Our figures beside those that the experiment cites."""
    anchors = summary.get("anchors")
    if not anchors:
        return []
    rows = tuple((one["name"], shown(one["ours"]), one["theirs"], one["source"]) for one in anchors)
    caption = (
        "Ours are of this run, on this machine; a dash: not reached, or not measured. Theirs are quoted."
    )
    return [
        Table(
            "Beside the literature",
            caption,
            ("figure", "this run", "theirs", "source of theirs"),
            rows,
            first=True,
        )
    ]


def shown(value: object) -> str:
    """A figure of the summary as a cell."""
    if value is None:
        return "-"
    return number(float(value), 4) if isinstance(value, int | float) else str(value)


def dollars(usd: float) -> str:
    """Dollars with three significant digits; below a hundredth of a cent in millionths (µ)."""
    return number(usd) if usd >= 1e-4 or usd == 0 else f"{number(usd * 1e6)} µ"  # noqa: PLR2004


def _groups(cost: Mapping[str, Any]) -> Table:
    rows = [
        (
            one["group"], one["kind"], one["profile"], str(one["clients"]), str(one["invocations"]),
            str(one["cold_starts"]), number(one["train_s"]), number(one["transfer_s"]),
            number(one["bytes_down"] / _MB), number(one["bytes_up"] / _MB), number(one["gb_s"]),
            number(one["wh"]), dollars(one["usd"]), one["basis"],
        )
        for one in cost["groups"]
    ]  # fmt: skip
    server = cost["aggregator"]
    rows.append(
        (
            "aggregator",
            "server",
            server["profile"],
            "1",
            *[""] * 7,
            number(server["wh"]),
            dollars(server["usd"]),
            server["basis"],
        )
    )
    caption = (
        "Seconds, bytes and starts are measured on this machine. Money is measured where the platform told its own "
        f"figures, else modelled; prices of {cost['prices_at']}. Energy is always modelled: watts of a profile "
        f"({cost['power_at']}) times seconds; devices are on for the whole run."
    )
    header = (
        "group", "kind", "profile", "clients", "invocations", "cold", "training s", "transfer s", "MB down", "MB up",
        "GB-s", "Wh", "US$", "money is",
    )  # fmt: skip
    return Table("Cost and energy by group", caption, header, tuple(rows))


def _otherwise(cost: Mapping[str, Any]) -> Table:
    spent = cost["clients"]
    rows = [("as it ran", number(spent["wh"]), dollars(spent["usd"]), spent["basis"])]
    rows += [
        (one["clients"], number(one["wh"]), dollars(one["usd"]), one["basis"]) for one in cost["otherwise"]
    ]
    caption = (
        "The same invocations, with the times measured here, by one sort of client alone; without the aggregator. "
        "A device or a function is as fast as this machine in this model."
    )
    return Table("The clients otherwise", caption, ("clients", "Wh", "US$", "money is"), tuple(rows))


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: columns of one width, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
