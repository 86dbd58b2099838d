"""Handing a wake-up to a participant process: its bytes on standard input, its word on standard output.

Called by the agent, so it imports nothing but what the agent has anyway. The bytes are never on a command line.
"""

from __future__ import annotations

import os
import time

from edge_runtime.log import say


class Wake:
    """A wake-up that waits or is being handled.

    `mid` is MQTT's packet id; None for a resumption of our own, or when the connection that it came by is lost.
    """

    __slots__ = ("data", "mid", "received", "starts")

    def __init__(self, mid: int | None, data: bytes) -> None:
        self.mid = mid
        self.data = data
        self.received = time.monotonic() * 1000
        self.starts = 0


class Child:
    """The participant that runs: its process, and what it has said so far."""

    def __init__(self, command: list[str], wake: Wake) -> None:
        self.wake = wake
        self.accepted = False
        self.retry_ms = 0
        self._said = b""
        theirs_in, our_in = os.pipe()
        our_out, theirs_out = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
        try:
            self.pid = os.posix_spawn(
                command[0], command, os.environ, file_actions=actions, setpgroup=0, setsigmask=()
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.output = our_out
        self.ended = os.pidfd_open(self.pid)
        try:
            os.write(our_in, wake.data)  # at most 4 KiB: a pipe takes them at once
        except BrokenPipeError:
            say("agent", "participant_gone", pid=self.pid)
        os.close(our_in)

    def listen(self) -> bool:
        """Read what it says; False at the end."""
        piece = os.read(self.output, 4096)
        *lines, self._said = (self._said + piece).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"accepted":
                self.accepted = True
            elif word == b"retry" and rest.isdigit():
                self.retry_ms = int(rest)
        return bool(piece)

    def reap(self) -> int:
        """It has ended: its exit status, or minus the signal."""
        while self.listen():
            continue
        os.close(self.output)
        os.close(self.ended)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self, number: int) -> None:
        """Send a signal to it and its group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return
