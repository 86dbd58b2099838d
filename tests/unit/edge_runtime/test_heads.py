"""Personal parameters on the disk of a device: durable, bounded, gone when it leaves its fleet."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import partial
from edge_runtime.heads import RUNS_KEPT, Heads
from edge_runtime.optimizers import Vector
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.layout import Layout

LAYOUT = Layout(6, ((1, 2), (5, 1)))
BUNDLE, OTHER = "ab" * 32, "cd" * 32
MANY = 1 << 20


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    return Heads(tmp_path / "heads", MANY)


def head(number: float) -> Vector:
    return np.full(3, number, np.float32)


def read(file: Path | None) -> list[float]:
    return [] if file is None else partial.from_bytes(file.read_bytes())[2].tolist()


def test_the_newest_head_is_what_the_next_round_begins_with(heads: Heads) -> None:
    assert heads.own("run-1", LAYOUT, 7) is None
    for round_id in (7, 9, 12):
        heads.put("run-1", round_id, BUNDLE, LAYOUT, head(round_id))
    assert read(heads.own("run-1", LAYOUT)) == [12.0] * 3
    assert read(heads.own("run-1", LAYOUT, 13)) == [12.0] * 3


def test_a_round_that_is_done_again_after_a_power_cut_begins_where_it_began(heads: Heads) -> None:
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    heads.put("run-1", 9, BUNDLE, LAYOUT, head(9))
    assert read(heads.own("run-1", LAYOUT, 9)) == [7.0] * 3
    heads.put("run-1", 9, BUNDLE, LAYOUT, head(9))
    assert read(heads.own("run-1", LAYOUT)) == [9.0] * 3


def test_old_rounds_and_old_runs_take_no_disk(heads: Heads, tmp_path: Path) -> None:
    for number in range(1, RUNS_KEPT + 4):
        for round_id in (10 * number, 10 * number + 1, 10 * number + 2):
            heads.put(f"run-{number}", round_id, BUNDLE, LAYOUT, head(number))
            for file in (tmp_path / "heads").glob(f"run-{number}.*"):
                os.utime(file, (round_id, round_id))
    left = sorted(file.name for file in (tmp_path / "heads").glob("*.head"))
    runs = range(4, RUNS_KEPT + 4)
    assert left == sorted(f"run-{number}.{10 * number + more}.head" for number in runs for more in (1, 2))


def test_the_bound_of_the_disk_costs_the_oldest_runs(tmp_path: Path) -> None:
    layout = Layout(100_000, ((0, 50_000),))
    heads, large = Heads(tmp_path / "heads", 1 << 20), np.zeros(50_000, np.float32)
    heads.check_room(layout)
    for number in range(1, 8):
        heads.put(f"run-{number}", number, BUNDLE, layout, large)
        assert sum(file.stat().st_size for file in (tmp_path / "heads").glob("*.head")) <= 1 << 20
    assert heads.own("run-7", layout) is not None


def test_a_task_whose_head_is_too_large_is_refused_before_it_trains(tmp_path: Path) -> None:
    for limit in (0, 1 << 20):
        with pytest.raises(LocalError, match="heads_mb") as caught:
            Heads(tmp_path / "heads", limit).check_room(Layout(1 << 20, ((0, 1 << 18),)))
        assert caught.value.code is Code.DISK_FULL


def test_a_damaged_head_and_one_of_another_layout_are_none(heads: Heads, tmp_path: Path) -> None:
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    assert heads.own("run-1", Layout(6, ((1, 3),))) is None
    file = tmp_path / "heads" / "run-1.7.head"
    file.write_bytes(file.read_bytes()[:-1])
    assert heads.own("run-1", LAYOUT) is None
    assert heads.served(BUNDLE) is None


def test_inference_gets_the_head_of_the_run_that_the_newest_model_is_of(heads: Heads) -> None:
    assert heads.served(BUNDLE) is None
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    heads.put("run-2", 9, BUNDLE, LAYOUT, head(9))
    heads.put("run-3", 11, OTHER, LAYOUT, head(11))
    found = heads.served(BUNDLE)
    assert found is not None
    assert (read(found[0]), found[1]) == ([9.0] * 3, LAYOUT)
    heads.serve(BUNDLE, "run-1")
    found = heads.served(BUNDLE)
    assert found is not None
    assert read(found[0]) == [7.0] * 3


def test_a_head_is_not_put_into_the_model_of_a_run_that_has_none(heads: Heads) -> None:
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    heads.serve(BUNDLE, "")
    assert heads.served(BUNDLE) is None
    heads.serve(BUNDLE, "run-8")  # evaluated here, never trained
    assert heads.served(BUNDLE) is None


def test_a_device_that_leaves_its_fleet_keeps_nothing(heads: Heads, tmp_path: Path) -> None:
    heads.erase()
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    heads.erase()
    assert list((tmp_path / "heads").iterdir()) == []
    assert heads.own("run-1", LAYOUT) is None


def test_only_the_owner_may_read_a_head(heads: Heads, tmp_path: Path) -> None:
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    assert (tmp_path / "heads").stat().st_mode & 0o077 == 0
    assert (tmp_path / "heads" / "run-1.7.head").stat().st_mode & 0o077 == 0


def model(folder: Path, number: float = 0.0) -> Path:
    """A model as the fleet sent it, every element the same."""
    file = folder / (f"{int(number):x}" * 64)
    file.write_bytes(np.full(LAYOUT.parameters, number, "<f4").tobytes())
    return file


def whole(file: Path | None) -> list[float]:
    assert file is not None
    found: list[float] = np.fromfile(file, "<f4").tolist()
    return found


def test_a_function_of_ones_own_reads_the_model_with_the_head_in_its_place(
    heads: Heads, tmp_path: Path
) -> None:
    sent = model(tmp_path, 3)
    assert heads.completed(BUNDLE, sent) is None
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    expected = np.full(LAYOUT.parameters, 3.0)
    for at, size in LAYOUT.personal:
        expected[at : at + size] = 7.0
    first = heads.completed(BUNDLE, sent)
    assert whole(first) == expected.tolist()
    assert heads.completed(BUNDLE, sent) == first, "made once"
    heads.put("run-1", 9, BUNDLE, LAYOUT, head(9))
    second = heads.completed(BUNDLE, model(tmp_path, 4))
    assert set(whole(second)) == {4.0, 9.0}
    assert first is not None
    assert first.is_file(), "a call may be about to open it"
    os.utime(first, (1, 1))
    third = heads.completed(BUNDLE, model(tmp_path, 5))
    assert set((tmp_path / "heads").glob("*.whole")) == {second, third}
    heads.serve(BUNDLE, "")
    assert heads.completed(BUNDLE, sent) is None


def test_a_completed_model_keeps_to_the_room_that_the_owner_gives(tmp_path: Path) -> None:
    layout = Layout(1 << 18, ((0, 8),))
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(4 << 18))
    own = Heads(tmp_path / "heads", 1 << 20)
    own.put("run-1", 7, BUNDLE, layout, np.ones(8, np.float32))
    with pytest.raises(LocalError, match="Raise heads_mb") as caught:
        own.completed(BUNDLE, sent)
    assert caught.value.code is Code.DISK_FULL
    roomier = Heads(tmp_path / "heads", 2 << 20)
    assert roomier.completed(BUNDLE, sent) is not None
    roomier.put("run-2", 8, OTHER, layout, np.ones(8, np.float32))
    assert len(list((tmp_path / "heads").glob("*.whole"))) == 1
    own.put("run-3", 9, OTHER, layout, np.ones(8, np.float32))
    assert list((tmp_path / "heads").glob("*.whole")) == [], "heads come first"
    assert len(list((tmp_path / "heads").glob("*.head"))) == 3


def test_a_head_is_not_put_into_a_model_of_another_size(heads: Heads, tmp_path: Path) -> None:
    heads.put("run-1", 7, BUNDLE, LAYOUT, head(7))
    (tmp_path / "other").write_bytes(bytes(4))
    with pytest.raises(LocalError) as caught:
        heads.completed(BUNDLE, tmp_path / "other")
    assert caught.value.code is Code.STATE_CORRUPT
