"""Starting a platform's runtime for a test: a process of its own with a deployed function in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CLOUDS = "FEDLESS_CLOUDS"
"""Set by `make test-clouds`: the folder that has .venv-clouds, .venv-clouds-knative and .venv-clouds-tools."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(path: str) -> Path:
    """A part that `make test-clouds` installs; without it the test is skipped, but never in `make test-clouds`."""
    folder = Path(os.environ.get(CLOUDS, ROOT))
    found = folder / path
    if not found.exists():
        message = f"{path} is not installed: run `make test-clouds`"
        if CLOUDS in os.environ:
            raise FileNotFoundError(message)
        import pytest  # not in the environments that peers run in

        pytest.skip(message)
    return found.absolute()  # not resolved: a link into a virtual environment is its interpreter


@dataclass
class Peer:
    """A platform that runs: what an adapter must be told of it, and what the tests may expect."""

    platform: str
    settings: dict[str, Any]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    answers: bool = True
    """Whether the platform brings back what the function answered."""
    measures: bool = False
    """Whether it tells figures of its own."""
    unknown: Mapping[str, Any] | None = None
    """Settings of a function that is not there; None where the runtime has but one."""
    denied: Mapping[str, Any] | None = None
    """Settings with wrong credentials; None where the runtime asks for none."""

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)


def start(
    command: Sequence[object],
    port: int,
    folder: Path,
    environment: Mapping[str, str],
    seconds: float = 60,
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, and wait until it listens."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    log = folder / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**kept, "PYTHONPATH": str(ROOT), **environment}, start_new_session=True,
        )  # fmt: skip
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)


PYTHON = sys.executable
