"""Calling the tools that build: bounded, quiet unless they fail, and what to install where one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedless.protocol.errors import Code, LocalError

PACKAGES = {
    "mmdebstrap": "mmdebstrap", "arch-test": "arch-test", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs",
    "dumpe2fs": "e2fsprogs", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "sfdisk": "fdisk", "xz": "xz-utils",
    "tar": "tar", "fakeroot": "fakeroot", "dpkg-deb": "dpkg", "apt-get": "apt",
}  # fmt: skip
SBIN = "/usr/sbin:/sbin"
_TOOL_S = 1800.0


def demand(*tools: str) -> None:
    """Raises `LocalError` NOT_INSTALLED naming every tool that is missing, and the packages to install."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES.get(tool, tool) for tool in missing}))
        raise LocalError(
            Code.NOT_INSTALLED, f"Building needs {', '.join(missing)}.",
            fix=f"On Debian: apt-get install --no-install-recommends {packages}",
        )  # fmt: skip


def run(
    command: Sequence[str],
    *,
    given: str = "",
    epoch: int | None = None,
    timeout_s: float = _TOOL_S,
    log: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> str:
    """Run a tool to its end; what it printed. `epoch`: the moment that it shall take for now, Unix seconds.

    Raises `LocalError` NOT_INSTALLED, or INTERNAL with the end of what it said.
    """
    environment = os.environ | {
        "PATH": f"{os.environ.get('PATH', '')}:{SBIN}",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    if epoch is not None:
        environment |= {"SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch)}
    environment |= more or {}
    try:
        done = subprocess.run(
            command, input=given, capture_output=log is None, stdout=None if log is None else log.open("ab"),
            stderr=None if log is None else subprocess.STDOUT, text=True, check=False, env=environment,
            timeout=timeout_s, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        demand(command[0])
        raise
    except subprocess.TimeoutExpired:
        raise LocalError(Code.INTERNAL, f"{command[0]} did not end within {timeout_s:.0f} s.") from None
    if done.returncode:
        said = (done.stderr or done.stdout or (log.read_text(errors="replace") if log else "")).strip()
        raise LocalError(Code.INTERNAL, f"{command[0]} ended with status {done.returncode}: ...{said[-600:]}")
    return done.stdout or ""
