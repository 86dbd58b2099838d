"""Devices and functions in one experiment: real runtimes, lines and speeds of their own, one report.

The first test needs nothing but fedless (its functions are on our own host); the whole example needs the platforms'
runtimes and belongs to `make test-clouds`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedless.experiments import peers
from tests.contract.peers.process import CLOUDS, ROOT, needed
from tests.real.test_experiment import experiment, run_folder, running

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
LATENCY_MS, UP_MBIT_S = 60.0, 2.0


def finished(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return json.loads((folder / "summary.json").read_text()), [json.loads(line) for line in lines]


def test_a_device_and_functions_train_under_their_own_conditions(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    line = {"latency_ms": LATENCY_MS, "up_mbit_s": UP_MBIT_S}
    groups = [
        {"kind": "edge", "count": 1, "slowdown": 1.5, "network": line},
        {"kind": "knative", "count": 2, "network": line, "concurrency": 2},
    ]
    file = experiment(tmp_path, rounds=1, clients=groups, targets=[0.01, 0.999])
    output = tmp_path / "runs"
    with running(str(file), "--out", str(output), cwd=tmp_path) as (process, alive):
        _, complained = process.communicate(timeout=240)
        assert process.returncode == 0, complained
        assert alive() == set()
    summary, rounds = finished(run_folder(output))
    clients = rounds[0]["clients"]
    assert {name: client["outcome"] for name, client in clients.items()} == dict.fromkeys(
        ("edge-1", "knative-2", "knative-3"), "reported"
    )
    for client in clients.values():  # what the line takes at least: one way, and the report's bits
        assert client["timings_ms"]["check_in"] >= LATENCY_MS
        assert client["timings_ms"]["report"] >= client["bytes_up"] * 8 / UP_MBIT_S / 1000
    rows = {row["group"]: row for row in summary["cost"]["groups"]}
    assert (rows["edge"]["invocations"], rows["knative"]["invocations"]) == (1, 2)
    assert rows["knative"]["gb_s"] > 0
    assert rows["edge"]["wh"] > 0
    assert summary["rounds_to"] == {"1%": 1, "99.9%": None}
    assert "Cost and energy by group" in (run_folder(output) / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(CLOUDS not in os.environ, reason="part of `make test-clouds`")
def test_the_mixed_example_runs_masked_with_its_helper(tmp_path: Path) -> None:
    for part in ("boto3", "google.auth", "httpx"):
        pytest.importorskip(part)
    needed(".venv-clouds-tools")
    assert peers.CLOUDS == CLOUDS
    output = tmp_path / "runs"
    file = ROOT / "examples" / "mixed" / "experiment.toml"
    arguments = (str(file), "--rounds", "2", "--out", str(output))
    with running(*arguments, cwd=tmp_path) as (process, alive):
        _, complained = process.communicate(timeout=840)
        assert process.returncode == 0, complained
        assert alive() == set()
    summary, rounds = finished(run_folder(output))
    assert (summary["masked"], summary["secagg_mode"], summary["rounds"]) == (True, "helper", 2)
    assert [entry["reported"] for entry in rounds if entry["state"] == "committed"] == [10, 10]
    assert (run_folder(output) / "logs" / "helper.log").is_file()
    bills = {
        name: client["bill"]["platform"] for name, client in rounds[0]["clients"].items() if client["bill"]
    }
    assert sorted(bills.values()) == ["aws-lambda", "aws-lambda", "google", "google"]
