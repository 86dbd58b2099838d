"""How long the parts of one invocation took, and what it weighed. Kept by the participant and the invocation."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.jobs import Outcome

INSTANCE_PARTS = frozenset({"data_ms", "load_ms", "train_ms", "evaluate_ms"})


@dataclass
class Timings:
    """Milliseconds of one invocation by phase, and what it weighed. `received` is CLOCK_MONOTONIC of the wake-up."""

    received: float
    phases: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    start: str = "cold"

    def instance(self, outcome: Outcome) -> None:
        """Note what the instance told of its own run: reading its data, loading the graph, training."""
        self.peak_rss_mb = outcome.peak_rss_mb
        for name, ms in outcome.timings_ms.items():
            if name in INSTANCE_PARTS:
                self.phases[f"instance_{name.removesuffix('_ms')}"] = ms

    def lap(self, name: str, since: float) -> float:
        """Note the time since `since` (monotonic ms) under `name`; the present moment."""
        now = monotonic_ms()
        self.phases[name] = round(now - since, 3)
        return now


def monotonic_ms() -> float:
    """CLOCK_MONOTONIC, which all processes of this machine share, in ms."""
    return time.monotonic() * 1000
