"""Pinned wheels of another machine, installed into a folder: no build, no emulation, each checked against its hash.

Called by `packaging` for cloud platforms and by `fedless.image` for boards.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedless.protocol.errors import Code, LocalError

_OLDEST_GLIBC = 17


@dataclass(frozen=True)
class Target:
    """For which machine: Python such as `3.13`, x86_64 or aarch64, the newest glibc 2.x that it has."""

    python: str
    architecture: str
    glibc: int = 28

    @property
    def tags(self) -> list[str]:
        """The platforms whose wheels it takes, best first."""
        minors = range(self.glibc, _OLDEST_GLIBC - 1, -1)
        return [
            *(f"manylinux_2_{minor}_{self.architecture}" for minor in minors),
            f"manylinux2014_{self.architecture}", "any",
        ]  # fmt: skip


def install(folder: Path, target: Target, *wanted: Sequence[str]) -> None:
    """Install into `folder`; each of `wanted` are arguments of one call of pip. Without scripts and tests.

    Raises `LocalError` NOT_INSTALLED with what pip said.
    """
    for arguments in wanted:
        _pip("install", target, "--no-compile", "--target", str(folder), "--upgrade", *arguments)
    for unused in ("bin", "share"):
        shutil.rmtree(folder / unused, ignore_errors=True)
    for tests in sorted(folder.rglob("tests"), reverse=True):
        if tests.is_dir():
            shutil.rmtree(tests)


def download(folder: Path, target: Target, *wanted: Sequence[str]) -> None:
    """The wheels themselves; otherwise as `install`."""
    for arguments in wanted:
        _pip("download", target, "--dest", str(folder), *arguments)


def pinned(lock: Path) -> list[str]:
    """pip's arguments for a lock file with hashes."""
    return ["--require-hashes", "-r", str(lock)]


def _pip(verb: str, target: Target, *arguments: str) -> None:
    command = [
        sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:", "--python-version", target.python, "--implementation", "cp",
        *(word for tag in target.tags for word in ("--platform", tag)), *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise LocalError(
            Code.NOT_INSTALLED, f"pip could not {verb} the wheels: {said}",
            fix="Is pip in this environment, and may this machine reach a package index?",
        )  # fmt: skip
