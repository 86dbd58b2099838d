"""A device's control variates: adopted once the report is counted, whatever happens between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.controls import RUNS_KEPT, Controls
from edge_runtime.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal.db")
    yield journal
    journal.close()


@pytest.fixture
def controls(tmp_path: Path, journal: Journal) -> Controls:
    return Controls(tmp_path / "controls", journal)


def change(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def own(controls: Controls, run_id: str = "run-1") -> list[float]:
    file = controls.own(run_id, 2)
    return np.fromfile(file, "<f4").tolist() if file else []


def test_a_counted_report_makes_the_new_variate_the_own_one(controls: Controls, tmp_path: Path) -> None:
    controls.put("run-1", 7, change(1.0, 2.0))
    assert own(controls) == []
    controls.settle(7, counted=True)
    assert own(controls) == [1.0, 2.0]
    controls.put("run-1", 9, change(0.5, -2.0))
    controls.settle(9, counted=True)
    controls.settle(9, counted=True)  # the power failed before it was written that the round is over
    assert own(controls) == [1.5, 0.0]
    assert [file.name for file in (tmp_path / "controls").iterdir()] == ["run-1.9.f32"]


def test_a_report_that_was_not_counted_changes_nothing(controls: Controls, tmp_path: Path) -> None:
    controls.put("run-1", 7, change(1.0, 2.0))
    controls.settle(7, counted=True)
    controls.put("run-1", 9, change(5.0, 5.0))
    controls.settle(9, counted=False)
    controls.settle(11, counted=False)
    assert own(controls) == [1.0, 2.0]
    assert [file.name for file in (tmp_path / "controls").iterdir()] == ["run-1.7.f32"]


def test_training_again_after_a_power_cut_adds_to_the_own_variate_once(controls: Controls) -> None:
    controls.put("run-1", 7, change(1.0, 2.0))
    controls.settle(7, counted=True)
    controls.put("run-1", 9, change(4.0, 4.0))
    controls.put("run-1", 9, change(1.0, 1.0))
    controls.settle(9, counted=True)
    assert own(controls) == [2.0, 3.0]


def test_a_damaged_file_is_no_variate(controls: Controls, tmp_path: Path) -> None:
    controls.put("run-1", 7, change(1.0, 2.0))
    controls.settle(7, counted=True)
    (tmp_path / "controls" / "run-1.7.f32").write_bytes(b"\0\0\0")
    assert own(controls) == []


def test_runs_do_not_share_variates_and_old_ones_are_forgotten(controls: Controls, tmp_path: Path) -> None:
    for number in range(1, RUNS_KEPT + 3):
        controls.put(f"run-{number}", number, change(float(number), 0.0))
        controls.settle(number, counted=True)
    assert own(controls, f"run-{RUNS_KEPT + 2}") == [RUNS_KEPT + 2.0, 0.0]
    assert len(list((tmp_path / "controls").iterdir())) == RUNS_KEPT
