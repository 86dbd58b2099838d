"""`fedless plan` and `fedless why` as users meet them, on a service that runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_fleet import ROOT, RunningFleet, fedless

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]
FUNCTION = ROOT / "examples" / "mnist" / "function-mlp"
TASK = f'name = "t"\nfunction = "{FUNCTION}"\nrounds = 2\nmode = "plain"\n[cohort]\nsize = 2\nwait_s = 600\n'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    running = RunningFleet(tmp_path_factory.mktemp("fleet") / "home")
    running.start()
    yield running
    running.close()


def task(folder: Path, more: str = "") -> Path:
    file = folder / "task.toml"
    file.write_text(TASK + more)
    return file


def test_plan_of_a_fleet_without_clients_is_refused_with_what_to_do(
    fleet: RunningFleet, tmp_path: Path
) -> None:
    done = fedless("plan", task(tmp_path), "--fleet", fleet.folder)
    assert done.returncode == 1
    assert "A round needs 2 clients at least; this fleet has 0 enrolled." in done.stdout
    assert "Instead: enroll 2 more (`fedless fleet claim`). (too_few)" in done.stdout
    assert "Traceback" not in done.stderr


def test_plan_of_a_fleet_with_clients(fleet: RunningFleet, tmp_path: Path) -> None:
    for name in ("plan-1", "plan-2"):
        fleet.device(name)
    done = fedless("plan", task(tmp_path), "--json", "--fleet", fleet.folder)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["clients"], seen["goal"], seen["down_bytes"]) == (2, 2, 4 * 101_770)
    assert seen["assumptions"]
    shown = fedless("plan", task(tmp_path), "--fleet", fleet.folder)
    assert "Assumed, not measured:" in shown.stdout


def test_plan_without_a_fleet(tmp_path: Path) -> None:
    done = fedless(
        "plan", task(tmp_path), "--clients", "50", "--assume", "examples_per_s=80000", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "50 enrolled, 50 can take part" in done.stdout
    bad = fedless("plan", task(tmp_path), "--clients", "50", "--assume", "speed=1", folder=tmp_path)
    assert bad.returncode == 1
    assert "found 'speed'" in bad.stderr


def test_plan_tells_contradictions_of_the_task(tmp_path: Path) -> None:
    file = task(tmp_path)
    file.write_text(TASK.replace('mode = "plain"', 'mode = "pairwise"\nstrategy = "median"'))
    done = fedless("plan", file, "--clients", "50", folder=tmp_path)
    assert done.returncode == 1
    assert "it must see single updates, which masks hide" in done.stderr
    assert "or choose mode plain" in done.stderr


def test_why_of_a_run(fleet: RunningFleet, tmp_path: Path) -> None:
    started = fedless("run", "start", task(tmp_path), "--fleet", fleet.folder)
    run = started.stdout.strip()
    told = fedless("why", run, "--fleet", fleet.folder)
    assert told.returncode == 0, told.stderr
    assert f"Run {run} is running" in told.stdout
    assert "The run was started." in told.stdout
    assert "title" in json.loads(fedless("run", "why", run, "--json", "--fleet", fleet.folder).stdout)
    unknown = fedless("why", "absent", "--fleet", fleet.folder)
    assert unknown.returncode == 1
    assert "There is no such run." in unknown.stderr
    fedless("run", "stop", run, "--fleet", fleet.folder)
