"""One device of a test's fleet, from outside: it is woken, killed at a step, and asked what it counted."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from edge_runtime.journal import Journal
from edge_runtime.participant import WakeUp, serve

CLIENT = "device-1"
ROOT = Path(__file__).parents[1]
# A participant that dies as a power cut would have it, right after the step is durable.
_DIES = """
import os, signal, sys, time
from pathlib import Path
from edge_runtime.participant import WakeUp, serve

def observe(step, round_id):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

now = time.monotonic() * 1000
sys.exit(serve(Path(sys.argv[1]), WakeUp(sys.stdin.buffer.read(), now, now), observe))
"""


def woken(data: bytes = b"") -> WakeUp:
    """What an agent of 21.5 MB hands on this moment; no data: a start."""
    now = time.monotonic() * 1000
    return WakeUp(data, now, now, 21.5)


def wake(state: Path, data: bytes = b"") -> int:
    """A participant in this process; its exit status."""
    return serve(state, woken(data))


def participant(state: Path, dies_at: str = "never") -> subprocess.Popen[bytes]:
    """A participant in a process of its own, which reads the wake-up from its input and may die at a step."""
    return subprocess.Popen(
        [sys.executable, "-c", _DIES, str(state), dies_at], stdin=subprocess.PIPE, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def killed_at(step: str, state: Path, data: bytes) -> int:
    """The exit status of a participant that is killed at this step."""
    process = participant(state, step)
    try:
        process.communicate(data, timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode


def counters(state: Path) -> dict[str, int]:
    with closing(Journal.open(state / "journal.db", read_only=True)) as journal:
        return journal.counters()
