"""What the benchmarks share: one JSON object on standard output, medians, memory of processes, this machine.

Each bench_*.py measures one claim, in seconds to a few minutes, and prints its figures beside a reference that was
measured in the same run, so that the ratio means the same on every machine. `anchors` are published figures of others
(taken on another machine): the measurement is not compared with them by ratio.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from fedless.experiments.config import Data
from fedless.experiments.datasets import load, take, to_npz
from fedless.experiments.progress import Progress
from fedless.protocol.tables import write_tables

ROOT = Path(__file__).parents[1]
MNIST = ROOT / "examples" / "mnist"
MB = 1e6
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # who measures starts compares compiled modules, ours and others'


def finish(name: str, **figures: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print the result."""
    machine = {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }
    print(json.dumps({"benchmark": name, **figures, "machine": machine}, indent=2))


def say(line: str) -> None:
    """Progress, to standard error."""
    print(line, file=sys.stderr, flush=True)


def middle(values: Sequence[float], digits: int = 2) -> float:
    """The median, rounded."""
    return round(statistics.median(values), digits)


def memory_mb(pid: int) -> dict[str, float]:
    """A process' memory in MB: resident, its fair share of it (PSS), and what is its own alone (USS)."""
    info = psutil.Process(pid).memory_full_info()
    return {"rss_mb": info.rss / MB, "pss_mb": info.pss / MB, "uss_mb": info.uss / MB}


def family_cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds, user and system, of these processes and of all their descendants, ended ones included."""
    total = 0.0
    for pid in pids:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def python(code: str, *arguments: str, flags: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`; ended with the block. Its standard output is a pipe."""
    argv = [sys.executable, *flags, "-c", code, *arguments]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of a process' output; an error if it ended without one."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        message = f"the process ended with status {process.wait()} before it said anything"
        raise RuntimeError(message)
    return line.strip()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards; on a disk, since the aggregator syncs what it stores."""
    with tempfile.TemporaryDirectory(prefix="fedless-bench-") as folder:
        yield Path(folder)


def wait_idle(limit: float = 0.5, timeout_s: float = 60.0) -> None:
    """Wait until the machine's cores are nearly idle for half a second, so that strangers are not measured."""
    give_up_at = time.monotonic() + timeout_s
    while psutil.cpu_percent(interval=0.5) / 100 * (os.cpu_count() or 1) > limit:
        if time.monotonic() > give_up_at:
            say("the machine is busy: the figures say more about it than about fedless")
            return


def task(name: str, rounds: int, clients: int, **client: Any) -> str:  # noqa: ANN401
    """A task's text: every client in every round, no evaluation; `client` is its [client] table."""
    return write_tables(
        {
            "name": name,
            "function": "function.bundle",
            "mode": "plain",
            "rounds": rounds,
            "cohort": {"size": clients, "over_selection": 1.0, "minimum_reports": clients},
            "evaluation": {"central_every": 0},
            "client": client,
        }
    )


def images(count: int) -> bytes:
    """The first `count` training images of the MNIST example with their labels, as .npz."""
    data = Data("idx", MNIST / "data", MNIST / "data", 0, "y")
    return to_npz(take(load(data, seed=0).train, np.arange(count)))


def quiet() -> Progress:
    """Progress on standard error: standard output is for the result."""
    return Progress(Console(stderr=True, highlight=False))
