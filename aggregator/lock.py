"""One aggregator per state directory: a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aggregator import owner
from fedless.protocol.errors import Code, LocalError


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Holds the state directory for this process; makes it if it is not there.

    Whoever holds it makes private files only: 0600, directories 0700.

    Raises `LocalError` STATE_LOCKED naming the process that holds it, or STATE_MISSING.
    """
    try:
        owner.make(directory)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LocalError(
            Code.STATE_MISSING, f"{error}.", fix="Check state.directory and its rights."
        ) from error
    with os.fdopen(descriptor, "r+") as file:
        owner.give(descriptor, directory)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            detail = f"Process {file.read(20).strip() or 'unknown'} holds {directory}."
            raise LocalError(Code.STATE_LOCKED, detail, fix="Stop it first.") from error
        umask = os.umask(0o077)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            os.umask(umask)
