"""The processes of a local fleet: each in a session of its own, logged to files, stopped without leftovers.

Used by `fleet`. A child's own children (mosquitto, participants, training instances) are its to stop; those
that outlive it are found by their session and ancestry, and killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import psutil

from fedless.experiments import watcher
from fedless.protocol.errors import Code, LocalError

TAIL_LINES = 12
_POLL_S = 0.05


@dataclass(frozen=True)
class Child:
    """One running process with the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def ended(self) -> LocalError:
        """What to raise when it should be running and is not: how it ended and its last words."""
        return LocalError(
            Code.INTERNAL,
            f"{self.name} ended with status {self.process.poll()}. The end of its log:\n{tail(self.log)}\n",
            fix=f"The whole log is {self.log}.",
        )


class Children:
    """Everything that one experiment started; `stop` ends all of it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []
        self._watcher: subprocess.Popen[bytes] | None = None
        self._telling = Lock()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a long-running process. Raises `LocalError(NOT_INSTALLED)` if there is no such program."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            child = Child(name, _spawn(argv, output.fileno(), environment), log)
        self._children.append(child)
        self._tell_watcher("+", child)
        return child

    def run(self, name: str, argv: Sequence[str], stdin: bytes, timeout_s: float) -> None:
        """Run a short process to its end. Raises `LocalError` with its last words if it fails or hangs."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            child = Child(name, _spawn(argv, output.fileno(), None, subprocess.PIPE), log)
        self._children.append(child)
        self._tell_watcher("+", child)
        try:
            child.process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _stop([child], 1.0)
            raise LocalError(
                Code.BUSY, f"{name} did not end within {timeout_s:g} s:\n{tail(log)}\n"
            ) from None
        if child.process.returncode:
            raise child.ended()
        self._children.remove(child)
        self._tell_watcher("-", child)

    def kill(self, child: Child) -> None:
        """Kill a child and its whole family at once, as a power cut would; it is no longer expected to run."""
        self._children.remove(child)
        for process in (family := watcher.family(child.process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5.0)
        child.process.wait()
        self._tell_watcher("-", child)

    def check(self) -> None:
        """Raises what `Child.ended` says about the first child that is no longer running."""
        for child in self._children:
            if not child.alive:
                raise child.ended()

    def stop(self, first: Callable[[Child], bool], grace_s: float) -> None:
        """End every child: those that `first` picks, then the others; after `grace_s` each, by force.

        A second Ctrl-C while waiting ends the waiting.
        """
        waves = ([c for c in self._children if first(c)], [c for c in self._children if not first(c)])
        try:
            for wave in waves:
                _stop(wave, grace_s)
        except KeyboardInterrupt:
            for wave in waves:
                _stop(wave, 0.0)
            raise
        finally:
            for child in self._children:
                self._tell_watcher("-", child)
            self._children.clear()
            self._end_watcher()

    def _tell_watcher(self, sign: str, child: Child) -> None:
        """So that a kill -9 of this process ends its children too."""
        with self._telling, contextlib.suppress(BrokenPipeError):
            if self._watcher is None:
                command = (sys.executable, "-m", watcher.__name__)
                self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            assert self._watcher.stdin is not None  # noqa: S101 - it is a pipe
            self._watcher.stdin.write(f"{sign}{child.process.pid}\n".encode())
            self._watcher.stdin.flush()

    def _end_watcher(self) -> None:
        with self._telling:
            if self._watcher is not None and self._watcher.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._watcher.stdin.close()
                self._watcher.wait()
                self._watcher = None


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log file, indented."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "  (no log)"
    return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-lines:]) or "  (empty)"


def wait_until(
    ready: Callable[[], bool], timeout_s: float, what: Callable[[], str], children: Children
) -> None:
    """Poll `ready`; raises `LocalError(BUSY)` with `what()` after `timeout_s`, at once if a child ends."""
    give_up_at = time.monotonic() + timeout_s
    while not ready():
        children.check()
        if time.monotonic() > give_up_at:
            raise LocalError(Code.BUSY, f"{what()} (waited {timeout_s:g} s)")
        time.sleep(_POLL_S)


def _spawn(
    argv: Sequence[str],
    output: int,
    environment: Mapping[str, str] | None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # a Ctrl-C reaches the experiment only, which stops in order
        )
    except FileNotFoundError:
        raise LocalError(Code.NOT_INSTALLED, f"There is no program {argv[0]}.") from None


def _stop(children: Sequence[Child], grace_s: float) -> None:
    """Ask these and their process groups to end, then kill whatever of their families is left."""
    families = [process for child in children for process in watcher.family(child.process.pid)]
    for child in children:
        _signal_group(child, signal.SIGTERM)
    _, left = psutil.wait_procs(families, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for child in children:
        _signal_group(child, signal.SIGKILL)  # a process that was started while we waited
        child.process.wait()
    psutil.wait_procs(left, timeout=1.0)


def _signal_group(child: Child, number: signal.Signals) -> None:
    # A group's id is not given away while the group has members; without members there is nobody to find.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)
