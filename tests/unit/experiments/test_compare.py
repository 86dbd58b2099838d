"""Runs side by side: the table's figures are the runs', the page needs nothing else, and a folder's runs are listed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedless.experiments import compare
from fedless.protocol.errors import Code, LocalError


def folder(tmp_path: Path, name: str, summary: dict[str, Any], rounds: list[dict[str, Any]]) -> Path:
    path = tmp_path / name
    path.mkdir()
    (path / "summary.json").write_text(json.dumps({**summary, "run_id": name}))
    (path / "rounds.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rounds))
    return path


@pytest.fixture
def two(tmp_path: Path, summary: dict[str, Any], rounds: list[dict[str, Any]]) -> list[Path]:
    spent = {"clients": {"usd": 0.25, "wh": 3.0, "basis": "modelled"}}
    first = {**summary, "variant": "fedavg", "strategy": "fedavg", "secagg_mode": "helper", "cost": spent}
    return [
        folder(tmp_path, "a", first, rounds),
        folder(tmp_path, "b", {**summary, "variant": "fedadam"}, rounds[:2]),
    ]


def test_each_run_has_a_row_with_its_figures(two: list[Path]) -> None:
    made = compare.table(compare.load(two), (0.7, 0.8))
    rows = [dict(zip(made.header, row, strict=True)) for row in made.rows]
    assert [row["run"] for row in rows] == ["fedavg s1", "fedadam s1"]
    assert [row["rounds to 70%"] for row in rows] == ["2", "2"]
    assert [row["rounds to 80%"] for row in rows] == ["3", "-"]
    assert rows[0]["s to 70%"] == "1\u2009002"  # from the first opening (1,000,000 ms) to 2,001,502 ms
    assert (rows[0]["US$"], rows[1]["US$"]) == ("0.25", "-")
    assert rows[0]["MB up"] == "0.0048"


def test_seeds_of_one_variant_are_summed_up(
    tmp_path: Path, summary: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    runs = [
        folder(
            tmp_path,
            f"s{seed}",
            {**summary, "seeds": [seed], "test_accuracy": 0.8 + seed / 10},
            rounds[: 2 * seed],
        )
        for seed in (1, 2)
    ]
    made = compare.over_seeds(compare.load(runs), (0.7, 0.8, 0.99))
    assert made is not None
    (row,) = made.rows
    found = dict(zip(made.header, row, strict=True))
    assert (found["seeds"], found["accuracy"]) == ("2", "0.95 ± 0.0707")
    assert (found["rounds to 70%"], found["rounds to 80%"], found["rounds to 99%"]) == (
        "2 ± 0",
        "3 (1 of 2)",
        "-",
    )
    assert "Over the seeds" in compare.write(runs, tmp_path / "page.html").read_text()
    assert compare.over_seeds(compare.load(runs[:1]), (0.7,)) is None


def test_page_needs_nothing_else(two: list[Path], tmp_path: Path) -> None:
    text = compare.write(two, tmp_path / "out" / "compare.html").read_text()
    assert text.count("<svg") == 5
    assert "fedavg s1" in text
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)


def test_runs_of_one_name_are_told_apart_by_their_folders(two: list[Path], tmp_path: Path) -> None:
    again = folder(tmp_path, "c", json.loads((two[0] / "summary.json").read_text()), [])
    assert [run.label for run in compare.load([*two, again])] == ["a", "fedadam s1", "c"]


def test_columns_without_a_figure_are_left_out_of_the_text(two: list[Path]) -> None:
    head = compare.text([two[1]], (0.99,)).splitlines()[0]
    assert "accuracy" in head
    assert "99%" not in head
    assert "US$" not in head


def test_finished_runs_are_listed(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    lines = compare.listing(tmp_path).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["a", "b"]
    assert "0.9" in lines[1]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        compare.load([tmp_path])
    assert caught.value.code is Code.STATE_MISSING
    with pytest.raises(LocalError):
        compare.load([])
    with pytest.raises(LocalError, match="There is no folder"):
        compare.listing(tmp_path / "absent")
