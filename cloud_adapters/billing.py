"""*Pure.* What one invocation of a function costs: time and memory times a platform's price, in its own steps.

Called by `prices`, which reads the table, and by the aggregator's cost room, which also asks "what if".
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """One platform's prices, US dollars; see prices.toml for each field."""

    source: str
    per_gb_s: float
    per_request: float
    per_gb_out: float
    step_ms: int
    least_ms: int
    per_vcpu_s: float = 0.0
    vcpu_per_gb: float = 0.0


@dataclass(frozen=True)
class Bill:
    """Of one invocation with all its attempts, US dollars, and the GB-seconds that were billed."""

    usd: float
    gb_s: float


def bill(price: Price, billed_ms: float, memory_mb: float, attempts: int, bytes_out: int) -> Bill:
    """Time in ms is rounded up to the platform's step; `bytes_out` is traffic out of the platform."""
    steps_ms = max(price.least_ms, math.ceil(billed_ms / price.step_ms) * price.step_ms)
    gb_s = memory_mb / 1024 * steps_ms / 1000
    usd = gb_s * (price.per_gb_s + price.per_vcpu_s * price.vcpu_per_gb)
    return Bill(usd + attempts * price.per_request + bytes_out / 1e9 * price.per_gb_out, gb_s)
