"""The lock files fit pyproject.toml: `make demo` and `make test` install what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROLES = {
    "demo": ("aggregator", "edge"),
    "mixed": ("aggregator", "edge", "functions", "aws", "google"),
    "test": (
        "aggregator", "edge", "authoring", "parquet", "images", "functions", "aws", "google", "azure",
        "azure-runtime", "objects", "dev",
    ),
}  # fmt: skip
BOARDS = [
    {"platform_machine": machine, "python_version": minor, "python_full_version": f"{minor}.5"}
    for machine in ("x86_64", "aarch64")
    for minor in ("3.11", "3.12", "3.13")
]


def locked(lock: str, board: dict[str, str]) -> dict[str, str]:
    """Name -> version of what a machine like `board` gets from a lock file."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==(\S+)(?: ; ([^\\\n]+))?", text, re.MULTILINE)
    here = {**board, "extra": ""}
    return {canonicalize_name(n): v for n, v, marker in pins if not marker or Marker(marker).evaluate(here)}


def wanted(lock: str, board: dict[str, str]) -> list[Requirement]:
    """What pyproject.toml asks for in these roles on a machine like `board`."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    lines = [*project["dependencies"], *document["dependency-groups"]["build"]]
    lines += [line for role in ROLES[lock] for line in project["optional-dependencies"][role]]
    asked = [Requirement(line) for line in lines]
    here = {**board, "extra": ""}
    return [r for r in asked if r.name != "fedless" and (r.marker is None or r.marker.evaluate(here))]


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: f"{b['platform_machine']}-{b['python_version']}")
@pytest.mark.parametrize("lock", ROLES)
def test_lock_has_what_the_project_asks_for(lock: str, board: dict[str, str]) -> None:
    pins = locked(lock, board)
    unmet = [
        str(r) for r in wanted(lock, board) if pins.get(canonicalize_name(r.name), "0") not in r.specifier
    ]
    assert unmet == [], 'run "make lock"'


@pytest.mark.parametrize("lock", ROLES)
def test_lock_pins_by_hash_and_names_no_place(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(pins) > 40
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    assert re.findall(r"\S*(?:://|\bindex-url|find-links| @ )\S*", text) == []


def test_devices_do_not_get_tensorflow() -> None:
    assert not {"tensorflow", "tensorflow-cpu", "keras", "pytest"} & locked("demo", BOARDS[0]).keys()


def test_both_locks_agree() -> None:
    everything = locked("test", BOARDS[0])
    assert {n: v for n, v in locked("demo", BOARDS[0]).items() if everything[n] != v} == {}
