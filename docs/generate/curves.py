"""The picture and the tables of docs/convergence.md, made of what a benchmark measured and of nothing else.

`python docs/generate/curves.py RESULT.json PICTURE.svg`: RESULT.json is what benchmarks/bench_convergence.py printed.
One panel for each strategy, with the accuracy by round: a wide grey line for plain numpy, a thin dark one for the
product in the clear, orange dots for the product through the ring. The tables go to standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

COLUMNS, WIDTH, HEIGHT = 4, 236, 150
FEW = 4
"""Up to so many tenths of accuracy, each has its line."""
LEFT, RIGHT, TOP, BOTTOM = 30, 8, 22, 18
HEADING = 26
GREY, DARK, ORANGE = "#c3cad4", "#17406d", "#d9730d"
STYLE = (
    "text{font:11px sans-serif;fill:#222}.name{font-weight:bold}.tick{font-size:9px;fill:#555}"
    ".title{font-size:14px;font-weight:bold}line{stroke:#e3e6ea}polyline{fill:none}"
)
WAYS = {"plain": "in the clear", "masked": "through the ring"}
Told = Mapping[str, Any]


def picture(result: Told) -> str:
    """The SVG: MNIST's panels, then Shakespeare's."""
    body, top = [], 0
    for title, told in _sets(result):
        low, high = _limits(told)
        body.append(f'<text class="title" x="8" y="{top + 18}">{escape(title)}</text>')
        top += HEADING
        for place, (name, one) in enumerate(told["strategies"].items()):
            x, y = place % COLUMNS * WIDTH, top + place // COLUMNS * HEIGHT
            body.append(f'<g transform="translate({x} {y})">{"".join(_panel(name, one, low, high))}</g>')
        top += -(-len(told["strategies"]) // COLUMNS) * HEIGHT
    wide = COLUMNS * WIDTH
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {top}" width="{wide}" height="{top}">'
    )
    return "\n".join(
        [
            head,
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _sets(result: Told) -> Iterator[tuple[str, Told]]:
    mnist = result["mnist"]
    yield f"MNIST, {mnist['cohort']} of {mnist['clients']} clients: test accuracy by round", mnist
    if isinstance(result.get("shakespeare"), dict):
        spoken = result["shakespeare"]
        yield f"Shakespeare, {spoken['cohort']} of {spoken['speakers']} speakers: next character", spoken


def _limits(told: Told) -> tuple[float, float]:
    values = [value for one in told["strategies"].values() for value in one["reference"]["curve"]]
    return min(values) // 0.1 * 0.1, -(-max(values) // 0.1) * 0.1


def _panel(name: str, one: Told, low: float, high: float) -> Iterator[str]:
    """One strategy's curves with its grid, in a frame of WIDTH by HEIGHT."""
    inner = HEIGHT - TOP - BOTTOM

    def y(value: float) -> float:
        return round(TOP + inner * (high - value) / (high - low), 1)

    yield f'<text class="name" x="{LEFT}" y="14">{escape(name)}</text>'
    steps = round((high - low) / 0.1)
    for step in range(0, steps + 1, 2 if steps > FEW else 1):
        value = low + 0.1 * step
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
        yield f'<text class="tick" x="{LEFT - 4}" y="{y(value) + 3}" text-anchor="end">{value:.1f}</text>'
    rounds = len(one["reference"]["curve"])
    for number in (1, rounds):
        yield f'<text class="tick" x="{_x(number, rounds)}" y="{HEIGHT - 5}" text-anchor="middle">{number}</text>'
    for way, look in (
        ("reference", f'stroke="{GREY}" stroke-width="6" stroke-linejoin="round"'),
        ("plain", f'stroke="{DARK}" stroke-width="1.4"'),
        ("masked", f'stroke="{ORANGE}" stroke-width="2.6" stroke-linecap="round" stroke-dasharray="0 6"'),
    ):
        if way in one:
            points = " ".join(f"{_x(n, rounds)},{y(value)}" for n, value in enumerate(one[way]["curve"], 1))
            yield f'<polyline {look} points="{points}"/>'


def _x(number: int, rounds: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (number - 1) / max(1, rounds - 1), 1)


def tables(result: Told) -> str:
    """Rounds to each accuracy, and how far the product is from the same algorithm in numpy."""
    return "\n\n".join(_table(told) for _, told in _sets(result)) + "\n"


def _table(told: Told) -> str:
    targets = [f"{target:g}" for target in told["targets"]]
    head = ["strategy", "options", *(f"rounds to {100 * float(t):g} %" for t in targets), "best", "last"]
    head += [f"{WAYS[way]}: accuracy, weights apart" for way in WAYS]
    rows = [_row(name, one, targets) for name, one in told["strategies"].items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _row(name: str, one: Told, targets: Sequence[str]) -> list[str]:
    """The reference's rounds; a way of the product that needs another number of rounds says so."""
    reference = one["reference"]
    cells = [f"`{name.partition(',')[0]}`{name.partition(',')[2] and ',' + name.partition(',')[2]}"]
    cells.append(", ".join(f"`{key}` {value:g}" for key, value in one["options"].items()) or "-")
    for target in targets:
        found = {way: one[way]["rounds_to"][target] for way in ("reference", *WAYS) if way in one}
        differing = [
            f"{WAYS[way]} {count or 'never'}" for way, count in found.items() if count != found["reference"]
        ]
        cells.append("; ".join([str(found["reference"] or "never"), *differing]))
    cells += [f"{100 * reference[key]:.1f} %" for key in ("best_accuracy", "last_accuracy")]
    for way in WAYS:
        if way in one:
            apart = one[way]["largest_accuracy_difference_from_reference"]
            cells.append(f"{100 * apart:g} points, {one[way]['weights_apart_from_reference']:.1e}")
        else:
            cells.append("refused")
    return cells


def main() -> None:
    """Write the picture, print the tables."""
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(picture(result), encoding="utf-8")
    sys.stdout.write(tables(result))


if __name__ == "__main__":
    main()
