"""SIGKILL of a participant at hundreds of random lines of its code: it starts again each time, and reports once.

A helper process has everything imported and forks a participant for each attempt, so that an attempt costs what it
does and no more. The line is drawn from a seed, not from a clock: a find repeats.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from edge_runtime.functions import Functions
from edge_runtime.journal import Journal
from tests.conftest import LONG
from tests.edge_device import CLIENT
from tests.edge_fleet import PARAMETERS, FakeAggregator, Fleet, wake_bytes

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FEDLESS_KILLS", "200" if LONG else "60"))
"""About 80 ms each."""
KILLS_OF_A_ROUND = 4  # the fifth attempt at a round is the last one that it gets
SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
import edge_runtime.bundle, edge_runtime.invocation, edge_runtime.outbox, edge_runtime.starts, edge_runtime.telling
from edge_runtime.participant import WakeUp, serve

state = Path(sys.argv[1])
left = 0

def line(frame, event, argument):
    global left
    if event == "line":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return line

def calls(frame, event, argument):
    return line if "edge_runtime" in frame.f_code.co_filename else None

print("ready", flush=True)
for order in sys.stdin:
    limit, data = order.split()
    pid = os.fork()
    if pid == 0:
        if limit != "0":
            left = int(limit)
            threading.settrace(calls)
            sys.settrace(calls)
        now = time.monotonic() * 1000
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(serve(state, WakeUp(bytes.fromhex(data), now, now), lambda *_: None))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forker:
    """The helper process."""

    def __init__(self, state: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(state)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, data: bytes, kill_at_line: int = 0) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kill_at_line} {data.hex()}\n")
        self.process.stdin.flush()
        return int(self.answer())

    def close(self) -> None:
        self.process.communicate(timeout=20)


def of_this_device(state: Path) -> list[psutil.Process]:
    """Instances whose sandbox shows this device's functions."""
    mine, every = str(state / "functions"), psutil.process_iter(["cmdline"])
    return [process for process in every if mine in " ".join(process.info["cmdline"] or [])]


@pytest.mark.timeout(900)
def test_kills_at_random_lines(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    draw = random.Random(20261123)
    kills = rounds = 0
    with closing(Forker(state)) as forker:
        while kills < KILLS:
            rounds += 1
            task = fleet.task()
            ticket = fleet.ticket(CLIENT, rounds, task)
            here = aggregator.open(ticket, task)
            for _ in range(KILLS_OF_A_ROUND):
                lines = round(10 ** draw.uniform(1, 4))
                status = forker.run(wake_bytes(ticket), lines)
                kills += status == -signal.SIGKILL
                assert status in (0, -signal.SIGKILL), f"round {rounds}, line {lines}"
            assert forker.run(wake_bytes(ticket)) == 0
            assert here.accepted == 1, f"round {rounds}"
            assert len(here.data) == 4 * PARAMETERS
    with closing(Journal.open(state / "journal.db", read_only=True)) as journal:
        journal.check()
        assert journal.open_rounds() == []
        assert journal.reports() == []
        assert journal.counters()["reported"] == rounds
    with closing(Functions(state)) as functions:
        assert [item.version for item in functions.versions()] == [1]
    assert list((state / "outbox").iterdir()) == []
    until = time.monotonic() + 10
    while of_this_device(state):
        assert time.monotonic() < until, "an instance outlived its participant"
        time.sleep(0.05)
