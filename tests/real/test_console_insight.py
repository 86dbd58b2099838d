"""`fedless plan` and `fedless why` as users meet them, on a service that runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fedless.console.main import build
from fedless.protocol.errors import FedlessError
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
    with RunningFleet(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


def command(*arguments: str | Path) -> Result:
    """A command in this process: a new one takes a second to import everything."""
    words = list(map(str, arguments))
    return CliRunner().invoke(build(words[0]), words)


def refused(*arguments: str | Path) -> str:
    """The message of a command that must end with an error of ours."""
    error = command(*arguments).exception
    assert isinstance(error, FedlessError), error
    return str(error)


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
    done = command("plan", task(tmp_path), "--json", "--fleet", fleet.folder)
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout)
    assert (seen["clients"], seen["goal"], seen["down_bytes"]) == (2, 2, 4 * 101_770)
    assert seen["assumptions"]
    assert "Assumed, not measured:" in command("plan", task(tmp_path), "--fleet", fleet.folder).stdout


def test_plan_without_a_fleet(tmp_path: Path) -> None:
    done = command("plan", task(tmp_path), "--clients", "50", "--assume", "examples_per_s=80000")
    assert done.exit_code == 0, done.output
    assert "50 enrolled, 50 can take part" in done.stdout
    assert "found 'speed'" in refused("plan", task(tmp_path), "--clients", "50", "--assume", "speed=1")


def test_plan_tells_contradictions_of_the_task(tmp_path: Path) -> None:
    file = task(tmp_path)
    file.write_text(TASK.replace('mode = "plain"', 'mode = "pairwise"\nstrategy = "median"'))
    said = refused("plan", file, "--clients", "50")
    assert "it must see single updates, which masks hide" in said
    assert "or choose mode plain" in said


def test_why_of_a_run(fleet: RunningFleet, tmp_path: Path) -> None:
    run = command("run", "start", task(tmp_path), "--fleet", fleet.folder).stdout.strip()
    told = command("why", run, "--fleet", fleet.folder)
    assert told.exit_code == 0, told.output
    assert f"Run {run} is running" in told.stdout
    assert "The run was started." in told.stdout
    assert "title" in json.loads(command("run", "why", run, "--json", "--fleet", fleet.folder).stdout)
    assert "There is no such run." in refused("why", "absent", "--fleet", fleet.folder)
    command("run", "stop", run, "--fleet", fleet.folder)
    watched = command("run", "watch", run, "--tensorboard", tmp_path / "board", "--fleet", fleet.folder)
    assert "state    stopped" in watched.stdout
    assert list((tmp_path / "board" / run).iterdir())


def test_a_round_that_a_run_does_not_have_is_named(fleet: RunningFleet, tmp_path: Path) -> None:
    run = command("run", "start", task(tmp_path), "--fleet", fleet.folder).stdout.strip()
    command("run", "stop", run, "--fleet", fleet.folder)
    assert f"Run {run} has no round 7." in refused("run", "show", run, "7", "--fleet", fleet.folder)


def test_models_are_listed_promoted_rolled_back_and_exported(fleet: RunningFleet, tmp_path: Path) -> None:
    on = ("--fleet", fleet.folder)
    runs = [command("run", "start", task(tmp_path), *on).stdout.strip() for _ in range(2)]
    for run in runs:
        command("run", "stop", run, *on)
    assert command("model", "list", runs[0], *on).exit_code == 0
    assert "version  0" in command("model", "show", runs[0], *on).stdout
    assert "name a version" in refused("model", "promote", runs[0], *on)
    for run in runs:
        assert command("model", "promote", run, "--version", "0", *on).exit_code == 0
    served = command("model", "channels", *on).stdout
    assert (runs[1] in served, runs[0] in served) == (True, False)
    back = command("model", "rollback", *on)
    assert back.stdout.strip() == f"production serves version 0 of {runs[0]} again."
    assert "served no other model before" in refused("model", "rollback", *on)
    assert "rolled back" in command("model", "channels", "production", *on).stdout


def test_models_are_exported(fleet: RunningFleet, tmp_path: Path) -> None:
    on = ("--fleet", fleet.folder)
    run = command("run", "start", task(tmp_path), *on).stdout.strip()
    command("run", "stop", run, *on)
    command("model", "promote", run, "--version", "0", "-c", "staging", *on)
    out = tmp_path / "m.npz"
    assert "101770 parameters" in command("model", "export", "--channel", "staging", "-o", out, *on).stdout
    with np.load(out) as file:
        assert sum(file[name].size for name in file) == 101_770
    assert "serves nothing" in refused("model", "export", "--channel", "absent", "-o", out, *on)
    assert "--like MODEL.keras" in refused("model", "export", run, "-o", tmp_path / "m.keras", *on)
    assert not (tmp_path / "m.keras").exists()


def test_an_export_of_a_personalised_run_says_what_it_holds(fleet: RunningFleet, tmp_path: Path) -> None:
    """The fleet has nobody's personal part: a file with an untrained one is written to whom it is enough only."""
    on = ("--fleet", fleet.folder)
    run = command("run", "start", task(tmp_path, "[personalise]\nlayers = 1\n"), *on).stdout.strip()
    command("run", "stop", run, *on)
    own = "dense_1/kernel, dense_1/bias (1290 of 101770 parameters)"
    assert f"personal {own}; each device has its own" in command("model", "show", run, *on).stdout
    out = tmp_path / "m.npz"
    said = refused("model", "export", run, "-o", out, *on)
    assert f"The fleet has no trained {own} of {run}" in said
    assert "--initial-head" in said
    assert not out.exists()
    done = command("model", "export", run, "-o", out, "--initial-head", *on)
    assert f"{own} have the initial values" in done.stderr
    with np.load(out) as file:
        initial = np.fromfile(FUNCTION / "initial.f32", "<f4")
        np.testing.assert_array_equal(file["dense_1/bias"], initial[-10:])
