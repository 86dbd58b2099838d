"""The process behind an instance, seen from its parent: started afresh, or forked by a fork server.

Called by `instance` and `warm`. Whichever it is, it is ended with its whole process group, its exit status is told
once, and its output is read from a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedless.protocol.errors import Code, LocalError

FORK, READY = b"fork", b"ready"
"""What is said to a fork server, and by it when its imports are done."""
STATUS = struct.Struct("=i")
"""How a fork server tells an exit status: as `os.waitstatus_to_exitcode`."""
# A process of ours skips `site`: what it would add to the path is handed over, its memory is saved. Imports make no
# garbage worth a search for it.
_BOOT = (
    "import gc, sys; gc.disable(); sys.path[:0] = sys.argv.pop(1).split(':'); "
    "m = __import__(sys.argv.pop(1), fromlist='m'); gc.enable(); sys.exit(m.main())"
)
_EXIT_S = 2.0
_SHELL_SIGNAL = 128


def own_start(*flags: str) -> list[str]:
    """What is put before the name of a module of ours, whose `main` a fresh interpreter with this path then runs."""
    paths = ":".join(path for path in sys.path if path and Path(path).exists())
    return [sys.executable, "-I", "-S", *flags, "-c", _BOOT, paths]


def start_of(module: str, python: str = sys.executable) -> list[str]:
    """The same for an instance, whose output is not buffered; of another interpreter with the path that it has."""
    if python != sys.executable:
        return [python, "-P", "-m", module]
    return [*own_start("-u"), module]


class Process(Protocol):
    """`output` is a descriptor with what it prints; `start` says how it came to be, for metrics."""

    output: int
    start: str

    def kill(self) -> None:
        """End it and all that it started. Any thread; again is fine."""

    def exit_status(self) -> int | None:
        """Its exit status, or minus the signal; None if it does not end within 2 s. Reaps nothing."""

    def close(self) -> None:
        """Kill it, reap it, close its output; again is fine."""


class Child:
    """A child process in its own session, with `descriptor` and no other of ours open."""

    start = "cold"

    def __init__(self, command: Sequence[str], descriptor: int, environment: Mapping[str, str]) -> None:
        """Raises `LocalError(INSTANCE_FAILED)` if it cannot be started."""
        self._boxed = "--unshare-pid" in command
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(descriptor,),
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise LocalError(Code.INSTANCE_FAILED, f"The process cannot be started: {error}.") from None
        assert self._process.stdout is not None  # noqa: S101  (it was started with a pipe)
        self.output = self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group."""
        return self._process.pid

    def kill(self) -> None:
        """End the process group."""
        if self._process.returncode is None:  # not reaped, so the id is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def exit_status(self) -> int | None:
        """As `Process`: until `close` the process group must keep its id."""
        limit = time.monotonic() + _EXIT_S
        while time.monotonic() < limit:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                return self._told(found)
            time.sleep(0.005)
        return None

    def close(self) -> None:
        """As `Process`."""
        self.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _told(self, found: os.waitid_result) -> int:
        """bubblewrap tells a signal as shells do."""
        if found.si_code != os.CLD_EXITED:
            return -found.si_status
        boxed_signal = self._boxed and found.si_status > _SHELL_SIGNAL
        return _SHELL_SIGNAL - found.si_status if boxed_signal else found.si_status


class Forked:
    """A child of a fork server: `lifeline` is our end of the socket by which the server knows that we want it."""

    start = "warm"

    def __init__(self, lifeline: socket.socket, output: int) -> None:
        self._lifeline = lifeline
        self.output = output
        self._status: int | None = None
        self._closed = False

    def kill(self) -> None:
        """The server sees the end of the lifeline, and kills."""
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)

    def exit_status(self) -> int | None:
        """As `Process`; the server says it."""
        if self._status is None and not self._closed:
            self._lifeline.settimeout(_EXIT_S)
            with contextlib.suppress(OSError):
                told = self._lifeline.recv(STATUS.size)
                self._status = STATUS.unpack(told)[0] if len(told) == STATUS.size else -signal.SIGKILL
        return self._status

    def close(self) -> None:
        """As `Process`: when this returns, the server has reaped it, or does not answer and is about to be ended."""
        self.kill()
        self.exit_status()
        if not self._closed:
            self._closed = True
            self._lifeline.close()
            os.close(self.output)
