"""The report is one page that needs nothing else, and its figures say what the rounds say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedless.experiments import charts, report
from fedless.protocol.errors import Code, LocalError

VOID = {"meta", "line", "rect", "circle", "polyline", "br"}


class Page(HTMLParser):
    """Every tag with its attributes; complains about tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_is_well_formed_and_asks_nothing_of_the_network(
    summary: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    text = report.render(summary, rounds)
    page = Page(text)
    assert [
        (tag, name) for tag, attributes in page.tags for name in attributes if name in ("src", "href")
    ] == []
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)


def test_every_figure_is_there_with_its_table(summary: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    figures = report.figures(rounds)
    assert [figure.title for figure in figures] == [
        "Accuracy per round", "Loss per round", "Time per phase of a round", "Wake-up to first step",
        "Bytes per device", "Cold and warm starts", "Participation", "Losses by reason",
    ]  # fmt: skip
    assert all(
        figure.rows and all(len(row) == len(figure.header) for row in figure.rows) for figure in figures
    )
    text = report.render(summary, rounds)
    assert text.count("<svg") == text.count("<details") == len(figures)


def test_figures_without_numbers_are_left_out() -> None:
    empty = {"number": 1, "metrics": {}, "phases_ms": {}, "losses": {}, "clients": {}}
    assert report.figures([empty]) == []
    assert report.figures([]) == []


def test_marks_stay_inside_the_drawing(rounds: list[dict[str, Any]]) -> None:
    for figure in report.figures(rounds):
        for rect in figure.rects:
            assert 0 <= rect.x <= rect.x + rect.width <= charts.WIDTH
            assert 0 <= rect.y <= rect.y + rect.height <= figure.height
        for line in figure.lines:
            assert all(0 <= x <= charts.WIDTH and 0 <= y <= figure.height for x, y in line.points)


def test_time_that_no_phase_accounts_for_is_shown_as_waiting(rounds: list[dict[str, Any]]) -> None:
    rounds[2]["seconds"] = 4.5
    phases = next(figure for figure in report.figures(rounds) if figure.title.startswith("Time"))
    assert phases.header == ("round", "wait", "collecting", "committing")
    assert [row[1] for row in phases.rows] == ["0", "0", "3", "0"]


def test_an_invocations_parts_are_shown_by_group(rounds: list[dict[str, Any]]) -> None:
    for entry in rounds:
        for client in entry["clients"].values():
            client["timings_ms"] |= {"run": 2000.0, "report": 500.0, "total": 3000.0}
        entry["clients"]["google-004"] = {**entry["clients"]["edge-001"], "timings_ms": {"run": 4000.0}}
    parts = next(figure for figure in report.figures(rounds) if figure.title == "An invocation's parts")
    assert parts.header == ("group", "train", "report")
    assert parts.rows == (("edge", "2", "0.5"), ("google", "4", "0"))


def test_lost_client_is_shown_with_its_reason(rounds: list[dict[str, Any]]) -> None:
    participation = next(figure for figure in report.figures(rounds) if figure.title == "Participation")
    assert [rect.note for rect in participation.rects if rect.style == "bad"] == [
        "edge-002, 3: instance_failed"
    ]
    assert ("lost", "bad") in participation.legend


SPREAD = {"device_accuracy_p10": 0.2, "device_accuracy_p50": 0.5, "device_accuracy_p90": 0.9}
SHOWN = tuple(name.replace("_", " ") for name in SPREAD)


def test_how_devices_differ_is_drawn_for_plain_rounds(
    summary: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    rounds[3]["metrics"] |= {"device_accuracy": 0.6, "device_accuracy_worst_decile": 0.1, **SPREAD}
    figure = next(figure for figure in report.figures(rounds) if figure.title == "How devices differ")
    assert figure.header == ("round", *SHOWN, "device accuracy worst decile")
    assert figure.rows[-1] == ("4", "0.2", "0.5", "0.9", "0.1")
    assert "is not told" not in report.render(summary, rounds)


def test_personalised_and_global_accuracy_are_both_drawn(rounds: list[dict[str, Any]]) -> None:
    rounds[3]["metrics"] |= {"device_accuracy": 0.9, "device_global_accuracy": 0.3, **SPREAD}
    rounds[3]["metrics"]["device_global_accuracy_p50"] = 0.4
    accuracy, spread = report.figures(rounds)[:2]
    assert {"device accuracy", "device global accuracy"} <= set(accuracy.header)
    assert spread.header == ("round", *SHOWN, "device global accuracy p50")


def test_the_page_says_why_masks_leave_no_distribution(
    summary: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    for entry in rounds:
        entry["mode"] = "pairwise"
        entry["metrics"]["device_accuracy"] = 0.6
    text = report.render(summary | {"masked": True}, rounds)
    assert "How devices differ (percentiles, the worst tenth) is not told: under masks" in text
    assert "How devices differ" not in [figure.title for figure in report.figures(rounds)]
    rounds[0]["metrics"]["epsilon"] = 1.0
    assert "these would have no noise" in report.render(summary, rounds)


def test_names_are_escaped(summary: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    rounds[0]["clients"]["<b>"] = rounds[0]["clients"].pop("edge-001")
    summary["name"] = "<script>"
    text = report.render(summary, rounds)
    assert "<script>" not in text
    assert "<b>" not in text


def test_report_is_written_from_the_folder(
    tmp_path: Path, summary: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rounds))
    assert report.write(tmp_path).read_text() == report.render(summary, rounds)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        report.write(tmp_path)
    assert caught.value.code is Code.STATE_MISSING
    (tmp_path / "summary.json").write_text("{")
    (tmp_path / "rounds.jsonl").write_text("")
    with pytest.raises(LocalError) as caught:
        report.write(tmp_path)
    assert caught.value.code is Code.STATE_CORRUPT


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.0, 37.0, (0.0, 10.0, 20.0, 30.0, 40.0)),
        (0.0, 0.0, (0.0, 0.2)),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert charts.ticks(low, high)[: len(expected)] == pytest.approx(expected)
    assert charts.ticks(low, high)[-1] >= high


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9273, "0.927"),
        (582026, "582\u2009026"),
        (0.0, "0"),
        (17.36, "17.4"),
        (4.0, "4"),
        (float("nan"), "-"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_percentiles_are_interpolated() -> None:
    assert charts.percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert charts.percentile([1.0], 0.95) == 1.0
    assert charts.percentile([], 0.5) == 0.0
