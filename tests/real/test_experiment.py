"""Whole experiments with real processes: what they leave on the disk, and that they leave nothing running."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fedless.console.link import open_link
from fedless.experiments import datasets
from fedless.experiments.config import Data, Dropout
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.progress import Progress
from fedless.experiments.run import train
from fedless.protocol.tables import write_tables

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
MNIST = ROOT / "examples" / "mnist"
FUNCTION = MNIST / "function-mlp"
PARAMETERS = 101_770
MARK = "FEDLESS_TEST_MARK"
FEDLESS = (sys.executable, "-c", "from fedless.console.main import main; main()")


def experiment(folder: Path, rounds: int, devices: int = 3, mode: str = "plain", **more: Any) -> Path:
    """An experiment file: the MLP, 300 images, IID."""
    file = folder / "experiment.toml"
    data = {"kind": "idx", "train": str(MNIST / "data"), "test": str(MNIST / "data"), "examples": 300}
    task = {
        "mode": mode,
        "rounds": rounds,
        "cohort": {"fraction": 1.0, "over_selection": 1.0},
        "client": {"optimizer": "adam"},
    }
    values = {
        "name": "small",
        "function": str(FUNCTION),
        "data": data,
        "partition": {"kind": "iid"},
        "clients": [{"kind": "edge", "count": devices}],
        "task": task,
        **more,
    }
    file.write_text(write_tables(values))
    return file


@contextmanager
def running(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], set[int]]]]:
    """`fedless experiment run ...`, and a function that gives all its processes that are alive, found by a mark."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: mark.partition("=")[2]}
    process = subprocess.Popen(
        [*FEDLESS, "experiment", "run", *arguments],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    seen: set[tuple[int, float]] = set()

    def alive() -> set[int]:
        """By mark, and by ancestry as long as the experiment runs: what cleans its environment is found, too."""
        found = {pid for pid in psutil.pids() if mark.encode() in environment_of(pid)}
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                seen.add((child.pid, child.create_time()))
        found |= {pid for pid, created in seen if psutil.pid_exists(pid) and same(pid, created)}
        return {pid for pid in found if state_of(pid) != psutil.STATUS_ZOMBIE}

    try:
        yield process, alive
    finally:
        process.kill()
        process.communicate()
        for pid in alive():
            os.kill(pid, signal.SIGKILL)


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def same(pid: int, created: float) -> bool:
    try:
        return psutil.Process(pid).create_time() == created
    except psutil.NoSuchProcess:
        return False


def state_of(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def run_folder(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_small_experiment_leaves_model_figures_and_report_and_no_process(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    with running(str(experiment(tmp_path, rounds=2)), "--out", str(output), cwd=tmp_path) as (process, alive):
        wait_for(process, lambda: len(alive()) > 4)  # experiment, aggregator, broker, devices
        said, complained = process.communicate(timeout=120)
        assert process.returncode == 0, complained
        assert alive() == set()
    folder = run_folder(output)
    assert sorted(path.name for path in folder.iterdir()) == [
        "logs", "model.f32", "report.html", "rounds.jsonl", "summary.json",
    ]  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    check_summary(summary)
    model = (folder / "model.f32").read_bytes()
    assert len(model) == 4 * PARAMETERS
    assert hashlib.sha256(model).hexdigest() == summary["model_sha256"]
    assert np.isfinite(np.frombuffer(model, "<f4")).all()
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [(entry["number"], entry["state"], entry["reported"]) for entry in rounds] == [
        (1, "committed", 3),
        (2, "committed", 3),
    ]
    assert {client["outcome"] for entry in rounds for client in entry["clients"].values()} == {"reported"}
    assert {path.name for path in (folder / "logs").iterdir()} == {
        "aggregator.log", "edge-1.log", "edge-2.log", "edge-3.log",
    }  # fmt: skip
    assert not re.search("https?:", (folder / "report.html").read_text())
    assert "round 2/2" in said


def check_summary(summary: dict[str, Any]) -> None:
    assert (summary["rounds"], summary["clients"], summary["parameters"]) == (2, 3, PARAMETERS)
    assert summary["masked"] is False
    assert 0.2 < summary["test_accuracy"] <= 1.0
    assert summary["uplink_bytes_per_parameter"] == pytest.approx(4.0, rel=0.01)
    assert 0 < summary["wake_to_first_step_ms_p50"] <= summary["wake_to_first_step_ms_p95"]
    assert 10 < summary["device_idle_rss_mb"] < summary["device_peak_rss_mb"] < 500
    assert 30 < summary["aggregator_peak_rss_mb"] < 500
    assert 0 < summary["round_seconds_median"] < summary["training_seconds"]
    assert {"machine", "versions", "seeds", "run_id"} <= summary.keys()


def test_masked_experiment_commits_without_a_device_that_dropped_out(tmp_path: Path) -> None:
    """Eight devices, one of them killed after it shared its keys and checked in: t = 6 of the others unmask."""
    file = experiment(tmp_path, 3, devices=8, mode="pairwise", dropouts=[{"client": 2, "round": 2}])
    output = tmp_path / "runs"
    with running(str(file), "--out", str(output), cwd=tmp_path) as (process, alive):
        _, complained = process.communicate(timeout=150)
        assert process.returncode == 0, complained
        assert alive() == set()
    folder = run_folder(output)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["masked"], summary["secagg_mode"], summary["rounds"]) == (True, "pairwise", 3)
    assert summary["dropouts"] == 1
    assert summary["uplink_bytes_per_parameter"] < 4.05
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [(entry["state"], entry["reported"]) for entry in rounds[:2]] == [
        ("committed", 8),
        ("committed", 7),
    ]


@pytest.mark.long
def test_helped_experiment_commits_without_a_device_that_dropped_out(tmp_path: Path) -> None:
    """The helper is one more process; nine devices, one of them killed after it checked in."""
    file = experiment(tmp_path, 2, devices=9, mode="helper", dropouts=[{"client": 2, "round": 1}])
    output = tmp_path / "runs"
    with running(str(file), "--out", str(output), cwd=tmp_path) as (process, alive):
        _, complained = process.communicate(timeout=150)
        assert process.returncode == 0, complained
        assert alive() == set()
    folder = run_folder(output)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["masked"], summary["secagg_mode"], summary["rounds"]) == (True, "helper", 2)
    assert summary["uplink_bytes_per_parameter"] < 4.05
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [(entry["state"], entry["reported"]) for entry in rounds[:1]] == [("committed", 8)]
    assert (folder / "logs" / "helper.log").read_text().count("event=round_closed") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_experiment_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "runs"
    with running(str(experiment(tmp_path, rounds=500)), "--out", str(output), cwd=tmp_path) as (
        process,
        alive,
    ):
        wait_for(process, lambda: any((path / "rounds.jsonl").is_file() for path in output.glob("*")))
        folder = run_folder(output)
        wait_for(process, lambda: (folder / "rounds.jsonl").stat().st_size > 0)
        assert len(alive()) > 4
        process.send_signal(number)
        _, complained = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in complained
        assert alive() == set()
    assert not (folder / "state").exists()
    assert (folder / "logs" / "aggregator.log").is_file()


def test_interrupted_while_devices_enroll_leaves_no_process(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    with running(str(experiment(tmp_path, rounds=2)), "--out", str(output), cwd=tmp_path) as (process, alive):
        wait_for(process, lambda: any(path.is_file() for path in output.glob("*/logs/aggregator.log")))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert alive() == set()


def test_experiment_with_mistakes_starts_nothing(tmp_path: Path) -> None:
    file = experiment(tmp_path, rounds=2)
    file.write_text(file.read_text().replace('name = "small"', 'name = "Small"\ncolour = 1'))
    with running(str(file), "--out", str(tmp_path / "runs"), cwd=tmp_path) as (process, _):
        _, complained = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "name:" in complained
    assert "colour: unknown key" in complained
    assert "Traceback" not in complained
    assert not (tmp_path / "runs").exists()


def images(count: int) -> bytes:
    data = Data("idx", MNIST / "data", MNIST / "data", count, "y")
    return datasets.to_npz(datasets.load(data, seed=1).train)


@pytest.mark.long
def test_killed_device_does_not_stop_the_round_and_comes_back(tmp_path: Path) -> None:
    """kill -9 of a whole device in the middle of a round: the round closes with the others."""
    task = write_tables(
        {
            "name": "killed",
            "function": "function.bundle",
            "mode": "plain",
            "rounds": 2,
            "cohort": {"size": 3, "over_selection": 1.0, "minimum_reports": 2},
            "round": {"deadline_s": 20},
            "client": {"local_epochs": 200},
            "evaluation": {"central_every": 0},
        }
    )
    devices = [Device(f"edge-{number}", images(64)) for number in (1, 2, 3)]
    with Progress() as progress, LocalFleet(tmp_path / "fleet", devices, open_link) as fleet:
        victim = fleet.agents["edge-2"].process
        info, rounds = train(
            fleet, fleet.operator(), FUNCTION, task, b"", tmp_path / "rounds.jsonl", progress,
            dropouts=[Dropout(client=2, round=1)],
        )  # fmt: skip
        assert fleet.agents["edge-2"].process.pid != victim.pid
    assert victim.poll() is not None
    assert info.state == "finished"
    assert [entry["state"] for entry in rounds] == ["committed", "committed"]
    assert [entry["reported"] for entry in rounds] == [2, 3]
    assert [sum(entry["losses"].values()) for entry in rounds] == [1, 0]
    assert rounds[0]["dropouts"] == 1
    assert rounds[0]["clients"]["edge-2"]["outcome"] in {"checked_in", "round_closed"}  # it asked again
