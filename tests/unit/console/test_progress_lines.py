"""What `run start --watch` and `run watch` say of rounds: rounds that were abandoned make no model."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fedless.console.link import RoundInfo, RunInfo
from fedless.console.run import _tell
from fedless.experiments.progress import Progress


def round_(number: int, state: str, **more: Any) -> RoundInfo:
    return RoundInfo(
        round_id=number, number=number, state=state, opened_at_ms=1000, ended_at_ms=4100, reported=2,
        selected=3, **more,
    )  # fmt: skip


def test_lines_count_models_and_not_rounds_and_sums_where_single_counts_are_hidden() -> None:
    rounds = [
        round_(1, "committed", metrics={"train_examples": 720.0, "test_accuracy": 0.5}),
        round_(2, "abandoned", reason="too_few", losses={"data_missing": 1}),
        round_(3, "committed", examples=240),
    ]
    run = RunInfo(run_id="r-1", state="finished", rounds_wanted=2, model_version=2, rounds=rounds)
    out = io.StringIO()
    told: set[int] = set()
    for _ in range(2):
        _tell(Progress(Console(file=out)), run, told)
    assert out.getvalue().splitlines() == [
        "round 1 committed, model 1 of 2  2/3 reports, 720 examples, 3.1 s  test_accuracy 0.5000",
        "round 2 abandoned  2/3 reports, 0 examples, 3.1 s  lost: data_missing 1  too_few",
        "round 3 committed, model 2 of 2  2/3 reports, 240 examples, 3.1 s",
    ]
