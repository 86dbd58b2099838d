"""The agent's side of the local API: a listening Unix socket, and a process that is started when somebody calls.

Called by the agent, so it imports nothing but what the agent has anyway. While that process lives it has the socket to
itself; when it has left, the agent listens again. One that fails is not started again for a while.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time

from edge_runtime.log import say

PAUSE_S = 5.0
_BACKLOG = 16


class Doorway:
    """`path` is the socket's; `command` starts the process that serves it."""

    def __init__(self, path: str, command: list[str], selector: selectors.BaseSelector) -> None:
        self._command = command
        self._selector = selector
        self._pid = 0
        self._ended = -1
        self._not_before = 0.0
        self._listening = False
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - the agent has no pathlib; the state directory's lock is ours
        self._listener.bind(path)
        os.chmod(path, 0o666)  # noqa: PTH101, S103 - who may call is judged by the kernel's word on who called
        self._listener.listen(_BACKLOG)

    def look(self) -> float | None:
        """Listen if it is time; the moment (monotonic s) at which it will be, or None."""
        if self._listening or self._pid:
            return None
        if time.monotonic() < self._not_before:
            return self._not_before
        self._selector.register(self._listener, selectors.EVENT_READ, self.called)
        self._listening = True
        return None

    def called(self) -> None:
        """Somebody calls: start the process."""
        self._selector.unregister(self._listener)
        self._listening = False
        self._not_before = time.monotonic() + PAUSE_S
        try:
            self._pid = os.posix_spawn(
                self._command[0],
                self._command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, self._listener.fileno(), 0)],
                setpgroup=0,
                setsigmask=(),
            )
        except OSError as error:
            say("agent", "local_not_started", why=error)
            return
        self._ended = os.pidfd_open(self._pid)
        self._selector.register(self._ended, selectors.EVENT_READ, self.ended)

    def ended(self) -> None:
        """The process has left."""
        self._selector.unregister(self._ended)
        os.close(self._ended)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        if status == 0:
            self._not_before = 0.0
        else:
            say("agent", "local_failed", status=status)

    def close(self, number: int) -> None:
        """End the process with that signal, and remove the socket."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)
            self.ended()
        if self._listening:
            self._selector.unregister(self._listener)
            self._listening = False
        self._listener.close()
        os.unlink(self._path)  # noqa: PTH108
