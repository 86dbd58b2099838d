"""Slow processors without root: a client's processes are stopped and continued, so that they get a share of the time.

`Pacer` is a thread of the experiment for one slowdown. Its clients' process families (agents or a platform's peer, with
all that they start) run for a slice and are stopped (SIGSTOP) for `slowdown - 1` times as long as they ran: what a
processor of that speed would take, they take. Waiting for the network is not slowed. A process counts from the first
slice after its start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Self

SLICE_S = 0.04
_PPID = 1
"""Of what follows the name in /proc/PID/stat: state, parent."""


class Pacer:
    """Slows the families of the processes that `roots` names at each turn. Use as a context manager."""

    def __init__(self, slowdown: float, roots: Callable[[], Collection[int]]) -> None:
        self._idle_share = slowdown - 1.0
        self._roots = roots
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pacer-{slowdown:g}", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; every process runs on."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        stopped: set[int] = set()
        try:
            while not self._ended.is_set():
                begun = time.monotonic()
                if self._ended.wait(SLICE_S):
                    return
                stopped = families(self._roots())
                tell(stopped, signal.SIGSTOP)
                ran = time.monotonic() - begun
                self._ended.wait(ran * self._idle_share)
                tell(stopped, signal.SIGCONT)
        finally:
            tell(stopped | families(self._roots()), signal.SIGCONT)


def tell(pids: Iterable[int], number: signal.Signals) -> None:
    """A signal to each of them that still runs."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def families(roots: Collection[int]) -> set[int]:
    """These processes and all their descendants that run now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
                children.setdefault(int(fields.split()[_PPID]), []).append(int(entry.name))
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, [])
    return found
