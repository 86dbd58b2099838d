"""The parent's side of a fork server: start it in its sandbox, ask it for instances, end it.

Called by the participant and by `functions.Host`, which decide for how long it is kept. The server belongs to this
process: it ends when its socket closes, also when this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from types import TracebackType
from typing import Self

from edge_runtime import sandbox
from edge_runtime.instance import Instance, child
from edge_runtime.process import FORK, READY, Child, Forked, start_of
from fedless.protocol.errors import Code, LocalError

_START_S = 30.0


class ForkServer:
    """One fork server; `instance` may be called from several threads. A context manager: leaving it ends it."""

    def __init__(self, process: Child, control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    def start(cls, space: sandbox.Space | None, python: str = sys.executable) -> ForkServer:
        """Start it and return at once: the first instance waits for its imports.

        `space` is what its instances see (None: no namespaces). Raises `LocalError(INSTANCE_FAILED)`.
        """
        command = start_of("edge_runtime.forkserver", python)
        if space is not None:
            command += ["--scratch", sandbox.SCRATCH]
        # the server sees its socket close when we die, so it needs no other watch
        return cls(*child(command, space, socket.SOCK_SEQPACKET, ends_with_parent=False))

    @property
    def pid(self) -> int:
        """Of the outermost process of the server."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Until its imports are done. Raises `LocalError(INSTANCE_FAILED)` with what it said if it ended."""
        self._control.settimeout(_START_S)
        try:
            told = self._control.recv(len(READY))
        except OSError as error:
            told = str(error).encode()
        if told != READY:
            self._process.kill()
            said = os.read(self._process.output, 1 << 14).decode(errors="replace").strip()[-500:]
            raise LocalError(Code.INSTANCE_FAILED, f"The fork server did not start. {said}".strip())

    def instance(self, *, wait: bool = True) -> Instance:
        """A warm start: returns when the instance has said its first word, or at once (then ask it: `speaks`).

        Raises `LocalError(INSTANCE_FAILED)`.
        """
        link, their_link = socket.socketpair()
        lifeline, their_lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, their_output = os.pipe()
        given = (their_link.fileno(), their_output, their_lifeline.fileno())
        try:
            socket.send_fds(self._control, [FORK], given)
        except OSError as error:
            link.close()
            lifeline.close()
            os.close(output)
            raise LocalError(Code.INSTANCE_FAILED, f"The fork server is gone: {error}.") from None
        finally:
            their_link.close()
            their_lifeline.close()
            os.close(their_output)
        instance = Instance(Forked(lifeline, output), link)
        if wait and not instance.speaks():
            instance.close()
            raise LocalError(Code.INSTANCE_FAILED, "The fork server is gone.")
        return instance

    def close(self) -> None:
        """End it with all its instances; again is fine."""
        with contextlib.suppress(OSError):
            self._control.close()
        self._process.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()
