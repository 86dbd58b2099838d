"""Files and folders that root makes belong to whom the folder around them belongs to.

A fleet's folder belongs to the service's user, and a command that an administrator runs as root would leave files there
that the service cannot read. That user may write there, so he could leave links for root to follow: files are made
anew, never opened (`create`). Used wherever a fleet's folder is written.
"""

from __future__ import annotations

import os
from pathlib import Path

PRIVATE, FOLDER = 0o600, 0o700
ROOT = 0


def create(path: Path) -> int:
    """A descriptor of a new empty file (0600), in place of what had its name. Raises OSError."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    try:
        give(descriptor, path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def make(directory: Path) -> None:
    """Makes a folder (0700) with those that it lies in, where they are missing. Raises OSError."""
    if directory.is_dir():
        return
    make(directory.parent)
    directory.mkdir(mode=FOLDER, exist_ok=True)
    if os.geteuid() == ROOT:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give(descriptor, directory.parent)
        finally:
            os.close(descriptor)


def give(descriptor: int, folder: Path) -> None:
    """Gives an open file the owner and group of a folder, if we are root and it is another's. Raises OSError."""
    if os.geteuid() != ROOT:
        return
    wanted, own = folder.stat(), os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (wanted.st_uid, wanted.st_gid):
        os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
