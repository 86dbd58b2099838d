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


def frame(data: bytes, received: float, agent_rss_mb: float) -> bytes:
    """A wake-up for a participant that stays: see `linger`."""
    return f"{len(data)} {received:.3f} {time.monotonic() * 1000:.3f} {agent_rss_mb:.1f}\n".encode() + data


class Child:
    """The participant that runs: its process, and what it has said so far.

    `agent_rss_mb` None: it takes one wake-up. Else it stays, is told that figure with each wake-up, and says `idle`.
    """

    def __init__(self, command: list[str], wake: Wake, agent_rss_mb: float | None = None) -> None:
        self.wake = wake
        self.accepted = False
        self.idle = False
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
        self._input = our_in
        if agent_rss_mb is None:
            self._write(wake.data)
            self.dismiss()
        else:
            self.give(wake, agent_rss_mb)

    def give(self, wake: Wake, agent_rss_mb: float) -> None:
        """The next wake-up for one that is idle. If it is gone, it ends without having accepted."""
        self.wake, self.accepted, self.idle, self.retry_ms = wake, False, False, 0
        self._write(frame(wake.data, wake.received, agent_rss_mb))

    def dismiss(self) -> None:
        """It gets no more wake-ups, and ends when it has done this one."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._input, data)  # at most 4 KiB and a line: a pipe takes them at once
        except BrokenPipeError:
            say("agent", "participant_gone", pid=self.pid)

    def listen(self) -> bool:
        """Read what it says; False at the end."""
        piece = os.read(self.output, 4096)
        *lines, self._said = (self._said + piece).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"accepted":
                self.accepted = True
            elif word == b"idle":
                self.idle = True
            elif word == b"retry" and rest.isdigit():
                self.retry_ms = int(rest)
        return bool(piece)

    def reap(self) -> int:
        """It has ended: its exit status, or minus the signal."""
        while self.listen():
            continue
        self.dismiss()
        os.close(self.output)
        os.close(self.ended)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self, number: int) -> None:
        """Send a signal to it and its group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return
