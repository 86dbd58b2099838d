"""*Pure.* The geometry of the report's figures: numbers in, marks of an SVG and a table out.

`report` makes the figures, templates/report.html.j2 draws any of them in one macro. Coordinates are SVG user
units, the origin is the upper left corner. Colours are names of CSS classes (`s1` to `s7`), so that the page
may turn dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 640.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 10.0, 10.0, 40.0
COLOURS = 7
_TEXT_WIDTH = 6.8  # of one character at the axis' font size
_LINE_HEIGHT = 13.0
_BAR_SHARE = 0.68  # of a category's width
_GAP = 1.0  # between the pieces of a stacked bar


@dataclass(frozen=True)
class Rect:
    """A filled rectangle; `note` is shown when the pointer rests on it."""

    x: float
    y: float
    width: float
    height: float
    style: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A polyline through `points`, with a dot and a note at each."""

    points: tuple[tuple[float, float], ...]
    style: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A label; `anchor` is start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Figure:
    """One chart with its legend (name, style) and the table of its numbers."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    height: float = HEIGHT
    legend: tuple[tuple[str, str], ...] = ()
    rects: tuple[Rect, ...] = ()
    lines: tuple[Line, ...] = ()
    grid: tuple[float, ...] = ()
    texts: tuple[Text, ...] = field(default=())


def number(value: float, digits: int = 3) -> str:
    """A short figure: three significant digits, thousands with a thin space, no exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}".replace(",", "\u2009")
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(low: float, high: float, wanted: int = 5, least: float = 0.0) -> tuple[float, ...]:
    """Round values from at most `low` to at least `high`, about `wanted` steps of 1, 2 or 5 x 10^k.

    No step is smaller than `least`: counts have no halves.
    """
    span = high - low if high > low else abs(high) or 1.0
    raw = max(span / wanted, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(step * index for index in range(first, max(last, first + 1) + 1))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of `values` lies, interpolated; 0.0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def lines(
    title: str,
    caption: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    limits: tuple[float, float] | None = None,
    axis: str = "round",
) -> Figure:
    """One line for each series over the categories; None is a gap that the line passes over."""
    known = [value for values in series.values() for value in values if value is not None]
    low, high = limits or (min([0.0, *known]), max([0.0, *known]))
    scale = _Scale(ticks(low, high))
    centres = _centres(len(categories))
    drawn = []
    for index, (name, values) in enumerate(series.items()):
        given = [(i, value) for i, value in enumerate(values) if value is not None]
        drawn.append(
            Line(
                tuple((centres[i], scale.y(value)) for i, value in given),
                _style(index),
                tuple(f"{name}, {axis} {categories[i]}: {number(value, 4)}" for i, value in given),
            )
        )
    return Figure(
        title,
        caption,
        (axis, *series),
        _rows(categories, series, 4),
        legend=_legend(series),
        lines=tuple(drawn),
        grid=scale.grid,
        texts=(*scale.texts, *_labels(categories, centres, axis=axis)),
    )


def curves(
    title: str,
    caption: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    limits: tuple[float, float] | None = None,
    axis: str,
) -> Figure:
    """One line for each series of points (x, y) over a number line from 0; x rises along each series."""
    points = [point for values in series.values() for point in values]
    low, high = limits or (min([0.0, *(y for _, y in points)]), max([0.0, *(y for _, y in points)]))
    scale = _Scale(ticks(low, high))
    marks = ticks(0.0, max([0.0, *(x for x, _ in points)]))
    across = (WIDTH - LEFT - RIGHT) / (marks[-1] - marks[0])
    drawn = tuple(
        Line(
            tuple((LEFT + x * across, scale.y(y)) for x, y in values),
            _style(index),
            tuple(f"{name}, {axis} {number(x)}: {number(y, 4)}" for x, y in values),
        )
        for index, (name, values) in enumerate(series.items())
    )
    under = _labels([number(mark) for mark in marks], [LEFT + mark * across for mark in marks], axis=axis)
    return Figure(
        title,
        caption,
        ("series", axis, "value"),
        tuple((name, number(x, 4), number(y, 4)) for name, values in series.items() for x, y in values),
        legend=_legend(series),
        lines=drawn,
        grid=scale.grid,
        texts=(*scale.texts, *under),
    )


def bars(
    title: str,
    caption: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    unit: str = "",
    axis: str = "round",
) -> Figure:
    """Stacked bars: for each category the series one on another; without a unit they are counts."""
    totals = [sum(values[i] for values in series.values()) for i in range(len(categories))]
    scale = _Scale(ticks(0.0, max([0.0, *totals]), least=0.0 if unit else 1.0))
    centres = _centres(len(categories))
    width = min(_BAR_SHARE * (WIDTH - LEFT - RIGHT) / max(1, len(categories)), 44.0)
    rects = []
    for i, category in enumerate(categories):
        base = 0.0
        for index, (name, values) in enumerate(series.items()):
            if values[i] <= 0:
                continue
            top, bottom = scale.y(base + values[i]), scale.y(base)
            note = f"{name}, {axis} {category}: {number(values[i])} {unit}".rstrip()
            height = max(bottom - top - (_GAP if base else 0.0), 0.5)
            rects.append(Rect(centres[i] - width / 2, top, width, height, _style(index), note))
            base += values[i]
    return Figure(
        title,
        caption,
        (axis, *series),
        _rows(categories, series),
        legend=_legend(series),
        rects=tuple(rects),
        grid=scale.grid,
        texts=(*scale.texts, *_labels(categories, centres, axis=axis)),
    )


def histogram(title: str, caption: str, values: Sequence[float], *, unit: str, bins: int = 12) -> Figure:
    """How often values fall into equal intervals between round numbers."""
    edges = ticks(min(values, default=0.0), max(values, default=1.0), bins)
    counts = [0.0] * (len(edges) - 1)
    step = edges[1] - edges[0]
    for value in values:
        counts[min(max(int((value - edges[0]) / step), 0), len(counts) - 1)] += 1
    names = [f"{number(low)}\u2013{number(high)}" for low, high in pairwise(edges)]
    figure = bars(title, caption, names, {"count": counts}, axis="")
    marks = [LEFT + i * (WIDTH - LEFT - RIGHT) / len(counts) for i in range(len(edges))]
    texts = [text for text in figure.texts if text.x < LEFT]  # the counts' axis; intervals get their edges
    return Figure(
        title,
        caption,
        (unit, "count"),
        figure.rows,
        rects=figure.rects,
        grid=figure.grid,
        texts=(*texts, *_labels([number(edge) for edge in edges], marks)),
    )


def matrix(
    title: str,
    caption: str,
    columns: Sequence[str],
    cells: Mapping[str, Sequence[str]],
    styles: Mapping[str, str],
) -> Figure:
    """One row of coloured cells for each name; `styles` gives each state's class, "" is left empty."""
    indent = min(max([LEFT, *(len(name) * _TEXT_WIDTH + 12 for name in cells)]), WIDTH / 3)
    side = (WIDTH - indent - RIGHT) / max(1, len(columns))
    height = next((height for most, height in ((30, 18.0), (80, 10.0)) if len(cells) <= most), 4.0)
    named = math.ceil(_LINE_HEIGHT / height)  # every how many rows there is room for a name
    gap = 1.0 if height > _LINE_HEIGHT else height / 10
    rects, texts = [], []
    for row, (name, states) in enumerate(cells.items()):
        y = TOP + row * height
        if row % named == 0:
            texts.append(Text(indent - 6, y + height / 2 + 4, name, "end"))
        for column, state in enumerate(states):
            if state:
                note = f"{name}, {columns[column]}: {state}"
                style = styles.get(state, "bad")
                rects.append(
                    Rect(indent + column * side + 1, y + gap, max(side - 2, 1), height - 2 * gap, style, note)
                )
    bottom = TOP + len(cells) * height
    centres = [indent + (i + 0.5) * side for i in range(len(columns))]
    seen = [state for state in styles if any(state in states for states in cells.values())]
    others = any(state and state not in styles for states in cells.values() for state in states)
    legend = [(state, styles[state]) for state in seen] + ([("lost", "bad")] if others else [])
    return Figure(
        title,
        caption,
        ("client", *columns),
        tuple((name, *states) for name, states in cells.items()),
        height=bottom + BOTTOM - 10,
        legend=tuple(legend),
        rects=tuple(rects),
        texts=(*texts, *_labels(columns, centres, bottom + 16)),
    )


class _Scale:
    """The vertical axis from the first to the last of `values`."""

    def __init__(self, values: tuple[float, ...]) -> None:
        self._low, self._high = values[0], values[-1]
        self.grid = tuple(self.y(value) for value in values)
        self.texts = tuple(Text(LEFT - 8, self.y(value) + 4, _plain(value), "end") for value in values)

    def y(self, value: float) -> float:
        """The height of a value, held inside the axis."""
        share = (min(max(value, self._low), self._high) - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _plain(value: float) -> str:
    """A tick's label."""
    return f"{value:.10g}" if abs(value) < 10_000 else number(value)  # noqa: PLR2004


def _style(index: int) -> str:
    return f"s{index % COLOURS + 1}"


def _legend(series: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _style(i)) for i, name in enumerate(series))


def _centres(count: int) -> list[float]:
    return [LEFT + (i + 0.5) * (WIDTH - LEFT - RIGHT) / max(1, count) for i in range(count)]


def _labels(
    names: Sequence[str], centres: Sequence[float], y: float = HEIGHT - BOTTOM + 18, axis: str = ""
) -> list[Text]:
    """As many names under the axis as fit, the first one always; the axis' own name before them."""
    if not names:
        return []
    room = (centres[1] - centres[0]) if len(centres) > 1 else WIDTH
    longest = max(len(name) for name in names) * _TEXT_WIDTH + 8
    step = max(1, math.ceil(longest / room))
    room_for_it = centres[0] - len(names[0]) * _TEXT_WIDTH / 2 > LEFT - 6
    label = [Text(LEFT - 8, y, axis, "end")] if axis and (room_for_it or centres[0] <= LEFT) else []
    return [*label, *(Text(centres[i], y, names[i]) for i in range(0, len(names), step))]


def _rows(
    categories: Sequence[str], series: Mapping[str, Sequence[float | None]], digits: int = 3
) -> tuple[tuple[str, ...], ...]:
    def cell(value: float | None) -> str:
        return "" if value is None else number(value, digits)

    return tuple(
        (category, *(cell(values[i]) for values in series.values())) for i, category in enumerate(categories)
    )
