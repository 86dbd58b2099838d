"""Files that are whole or absent, whatever happens to the power: written aside, synced, renamed, directory synced.

Called by the agent, the keystore, the cache and the outbox. Imports nothing but `os`, since the idle agent uses it.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def write_whole(
    path: str | os.PathLike[str],
    data: bytes | bytearray | memoryview,
    *,
    mode: int = 0o600,
    sync: bool = True,
) -> None:
    """Replace the file by `data`. `sync` False: after a power cut the old content may be back.

    Raises OSError, and leaves the old file then.
    """
    target = os.fspath(path)
    aside = f"{target}.new"
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(descriptor)
        os.replace(aside, target)  # noqa: PTH105 - pathlib is not imported by the agent
    except OSError:
        _quietly(os.unlink, aside)
        raise
    if sync:
        sync_folder(os.path.dirname(target) or ".")  # noqa: PTH120


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quietly(call: Callable[[str], None], path: str) -> None:
    try:
        call(path)
    except OSError:
        return
