"""A user's own strategy and selection: the example, as an installed package names it, and what cannot be used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from aggregator import selection, strategies
from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw
from aggregator.strategies.fedavg import FedAvg

EXAMPLE = Path(__file__).parents[3] / "examples" / "own-strategy"
TASK = """
name = "own"
function = "own"
mode = "plain"
strategy = "half-step"
strategy_options = {part = 0.25}
rounds = 1
[cohort]
size = 4
selection = "alphabetical"
"""
SCRIPT = """
import sys
from aggregator import tasks
from aggregator.strategies import make
from aggregator.strategies.base import Beside
settings = tasks.parse(sys.stdin.read())
print(make(settings.strategy, settings.strategy_options.given()).scale(Beside({})))
"""


def install(folder: Path, points: str) -> None:
    """What an installer leaves of a package: its file, and its metadata with the entry points."""
    info = folder / "half_step-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-step\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(points)
    (folder / "half_step.py").write_text((EXAMPLE / "half_step.py").read_text())


def entry_points() -> str:
    """The example's, as an installer writes them."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    return "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    )


def parse(folder: Path, task: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:] = {[str(folder), *sys.path]!r}\n{SCRIPT}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, input=task, capture_output=True, text=True, check=False, timeout=60)


def test_the_example_is_found_by_its_entry_points(tmp_path: Path) -> None:
    install(tmp_path, entry_points())
    done = parse(tmp_path, TASK)
    assert (done.stdout, done.returncode) == ("(0.25,)\n", 0), done.stderr


def test_an_option_that_ones_own_strategy_does_not_have_is_refused(tmp_path: Path) -> None:
    install(tmp_path, entry_points())
    done = parse(tmp_path, TASK.replace("part = 0.25", "whole = 1.0"))
    assert "strategy_options.whole: half-step does not use it; it has part" in done.stderr


def test_an_entry_point_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    install(tmp_path, "[fedless.strategies]\nhalf-step = half_step:Missing\n")
    done = parse(tmp_path, TASK)
    assert "half-step = half_step:Missing of fedless.strategies cannot be used" in done.stderr


def test_names_that_are_taken_and_things_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="there is a strategy fedavg already"):
        strategies.register("fedavg", FedAvg)
    with pytest.raises(ValueError, match="expected a subclass"):
        strategies.register("mine", dict)
    with pytest.raises(ValueError, match="there is a selection uniform already"):
        selection.register("uniform", lambda _candidates, _draw: [])
    with pytest.raises(ValueError, match="expected a function"):
        selection.register("mine", 3)  # type: ignore[arg-type]


def test_the_examples_selection_keeps_its_promise() -> None:
    spec = spec_from_file_location("half_step", EXAMPLE / "half_step.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["half_step"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    del sys.modules["half_step"]
    assert module.alphabetical([ClientRecord("b"), ClientRecord("a")], Draw(1, bytes(32))) == ["a"]
