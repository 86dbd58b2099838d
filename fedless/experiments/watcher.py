"""Ends an experiment's processes when the experiment itself was killed: reads their ids, until its input ends.

Started by `processes.Children`, which holds the other end of its standard input: `+PID` when a child was started,
`-PID` when it is gone. A kill -9 of the experiment closes that end, and nothing else would tell its children, each of
which is in a session of its own. (PR_SET_PDEATHSIG is no way: it speaks of the thread that started the child.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable

import psutil


def watch(lines: Iterable[str]) -> None:
    """Until the lines end, which is when whoever is still on the list is killed, with its family."""
    left: dict[int, psutil.Process] = {}
    for line in lines:
        pid = int(line[1:])
        with contextlib.suppress(psutil.NoSuchProcess):
            if line[0] == "+":
                left[pid] = psutil.Process(pid)  # with its start: the id may be another's later
            else:
                left.pop(pid, None)
    doomed = [process for pid in left for process in family(pid)]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def family(pid: int) -> list[psutil.Process]:
    """A process' descendants, itself, and what they left behind: everything of its session, as far as it runs."""
    found: list[psutil.Process] = []
    for other in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(other) == pid:
                found.append(psutil.Process(other))
    with contextlib.suppress(psutil.NoSuchProcess):
        found += psutil.Process(pid).children(recursive=True)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the experiment, not with a session
    watch(sys.stdin)
