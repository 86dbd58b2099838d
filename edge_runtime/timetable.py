"""The agent's side of local schedules: which function is due, and a process that calls it.

Called by the agent, so it imports nothing but what the agent has anyway. One call at a time; what is due while another
one runs waits for it. A device that slept does not catch up on what it missed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time

from edge_runtime.log import say


class Timetable:
    """`entries` is `NAME:SECONDS,...`; `command` with a name appended calls that entry's function (`scheduled`)."""

    def __init__(self, entries: str, command: list[str], selector: selectors.BaseSelector) -> None:
        self._command = command
        self._selector = selector
        self._pid = 0
        self._ended = -1
        pairs = (entry.rsplit(":", 1) for entry in entries.split(","))
        self._every = {name: float(seconds) for name, seconds in pairs}
        now = time.monotonic()
        self._due = {name: now + seconds for name, seconds in self._every.items()}

    def look(self) -> float:
        """Start what is due; in how many seconds it is time to look again."""
        now = time.monotonic()
        name = min(self._due, key=self._due.__getitem__)
        if self._pid:
            return self._every[name]  # its end is an event, which comes first
        if self._due[name] <= now:
            self._due[name] = now + self._every[name]
            self._start(name)
        return max(0.0, min(self._due.values()) - now)

    def ended(self) -> None:
        """The process has left."""
        self._selector.unregister(self._ended)
        os.close(self._ended)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        if status != 0:
            say("agent", "schedule_failed", status=status)

    def close(self, number: int) -> None:
        """End the process with that signal."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)
            self.ended()

    def _start(self, name: str) -> None:
        command = [*self._command, name]
        try:
            self._pid = os.posix_spawn(command[0], command, os.environ, setpgroup=0, setsigmask=())
        except OSError as error:
            say("agent", "schedule_not_started", why=error)
            return
        self._ended = os.pidfd_open(self._pid)
        self._selector.register(self._ended, selectors.EVENT_READ, self.ended)
