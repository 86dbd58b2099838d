"""One participant at a time on a state directory: called by `participant` and `linger`."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedless.protocol.errors import Code, LocalError

FILE = "participant.lock"
_PATIENCE_S = 1.0
_PAUSE_S = 0.02


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold `DIR/participant.lock`. Raises `LocalError(BUSY)` if another participant has it.

    A participant that was killed while it started an instance leaves a child that holds the lock until it has become
    that instance: a moment's patience tells it from one that lives.
    """
    descriptor = os.open(state / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(descriptor, time.monotonic() + _PATIENCE_S)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise LocalError(Code.BUSY, "Another participant works on this state directory.") from None
            time.sleep(_PAUSE_S)
        else:
            return
