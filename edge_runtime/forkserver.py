"""The fork server of a function version: inside its sandbox, imported once, one fork for each invocation.

Started by `warm` as `python -m edge_runtime.forkserver --fd N [--scratch DIR]` with a SEQPACKET socket. A message
`fork` brings three descriptors: the instance's link (`jobs.py`), its output, and its lifeline. The child serves the
link as a fresh `trainer` would; it ends when the lifeline's other end is closed, and its exit status (as
`os.waitstatus_to_exitcode`, i32) is written there. The server ends when its own socket closes, and takes all children
along. It has one thread and runs no function's code. What instances leave in their scratch folder is removed when the
last of them has ended.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from edge_runtime import trainer
from edge_runtime.data import csv, idx, npz  # noqa: F401  (in the children they cost nothing then)
from edge_runtime.process import FORK, READY, STATUS

DESCRIPTORS = 3
MAX_INSTANCES = 16
_OUTPUTS = (1, 2)


@dataclass
class _Child:
    pid: int
    watch: int
    lifeline: socket.socket


class Server:
    """Forks on request until its control socket closes."""

    def __init__(self, control: socket.socket, scratch: str = "") -> None:
        self._control = control
        self._scratch = scratch
        self._kept = frozenset(Path(scratch).iterdir() if scratch else ())  # mount points
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Serve; every child is dead when this returns."""
        self._control.send(READY)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    if not self._take():
                        self._end()
                        return
                elif (child := self._children.get(key.data)) is None:
                    continue  # ended by an earlier event of this pass
                elif key.fileobj is child.lifeline:
                    self._kill(child)
                else:
                    self._reap(child)

    def _take(self) -> bool:
        """One request; False at the end of the socket."""
        message, descriptors, _, _ = socket.recv_fds(self._control, len(FORK), DESCRIPTORS)
        if not message:
            return False
        if message != FORK or len(descriptors) != DESCRIPTORS or len(self._children) >= MAX_INSTANCES:
            for descriptor in descriptors:  # the caller sees its link closed
                os.close(descriptor)
            return True
        link, output, lifeline = descriptors
        pid = os.fork()
        if pid == 0:
            self._become(link, output, lifeline)
        os.close(link)
        os.close(output)
        child = _Child(pid, os.pidfd_open(pid), socket.socket(fileno=lifeline))
        self._children[pid] = child
        self._selector.register(child.watch, selectors.EVENT_READ, pid)
        self._selector.register(child.lifeline, selectors.EVENT_READ, pid)
        return True

    def _become(self, link: int, output: int, lifeline: int) -> None:
        """In the child: keep nothing of the server's and of other instances', serve, end."""
        status = 1
        try:
            os.setsid()
            self._selector.close()
            os.close(lifeline)
            self._control.close()
            for child in self._children.values():
                child.lifeline.close()
                os.close(child.watch)
            for number in _OUTPUTS:
                os.dup2(output, number)
            os.close(output)
            status = trainer.serve_and_close(socket.socket(fileno=link))
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _kill(self, child: _Child) -> None:
        """Its caller wants it no more. The reaping follows."""
        self._selector.unregister(child.lifeline)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.watch, signal.SIGKILL)

    def _reap(self, child: _Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.lifeline)
        self._selector.unregister(child.watch)
        with contextlib.suppress(OSError):  # nobody may be there to read it
            child.lifeline.send(STATUS.pack(os.waitstatus_to_exitcode(status)), socket.MSG_NOSIGNAL)
        child.lifeline.close()
        os.close(child.watch)
        del self._children[child.pid]
        if self._scratch and not self._children:
            self._clean()

    def _clean(self) -> None:
        for path in set(Path(self._scratch).iterdir()) - self._kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _end(self) -> None:
        for child in list(self._children.values()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.watch, signal.SIGKILL)
            self._reap(child)


def main(arguments: list[str] | None = None) -> int:
    """`python -m edge_runtime.forkserver --fd N [--scratch DIR]`."""
    words = sys.argv[1:] if arguments is None else arguments
    given = dict(zip(words[::2], words[1::2], strict=True))
    trainer.preload()
    with socket.socket(fileno=int(given["--fd"])) as control:
        gc.collect()
        gc.freeze()  # or the collector would touch, and so copy, every object's page in each child
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            Server(control, given.get("--scratch", "")).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
