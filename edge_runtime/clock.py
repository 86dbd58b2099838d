"""The device's clock, which may be wrong: never before this program was built or the aggregator was last heard."""

from __future__ import annotations

import time

BUILT_AT_MS = 1_793_491_200_000
"""2026-11-01: a clock before this counts as this. Raised with every release."""


def unix_ms() -> int:
    """What the machine's clock says, Unix ms."""
    return time.time_ns() // 1_000_000


def not_before(floor_ms: int) -> int:
    """The time, Unix ms; `floor_ms` is the aggregator's clock when it was last heard, or 0."""
    return max(unix_ms(), BUILT_AT_MS, floor_ms)
