"""What every entry file needs to know of an invocation: how long it may take, and what its answer's HTTP status is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedless.protocol.errors import Code

LIMIT = "FEDLESS_TIMEOUT_S"
"""The time limit that the function is deployed with, in seconds, where the platform does not tell it."""


def left_ms() -> float | None:
    """The time limit that the function is deployed with; None: not known."""
    limit = os.environ.get(LIMIT, "")
    return float(limit) * 1000 if limit else None


def status_of(answer: Mapping[str, Any]) -> int:
    """The HTTP status of an answer: 429 asks the platform for another process, all else was handled."""
    return 429 if answer["outcome"] == Code.BUSY.value else 200


def since_process_start_ms() -> float:
    """From the start of this process until now: what its cold start cost on our side."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    booted = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return round(max(0.0, booted - ticks / os.sysconf("SC_CLK_TCK")) * 1000, 1)
