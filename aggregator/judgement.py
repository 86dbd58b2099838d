"""*Pure.* Which of a run's models is the best, and whether it is still worth going on.

Called by the run's driver after each round, by `catalogue` and the dashboard. All of it is computed from the metrics of
committed rounds, which are in the store: after a restart the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HIGHER = ("test_accuracy", "device_accuracy", "train_accuracy")
"""Metrics that a run is judged by when its task names none: the first of these, else of `LOWER`, that it has."""
LOWER = ("test_loss", "device_loss", "train_loss")
"""Those on the aggregator's test set come first, and are left out where it has no whole model (`Aim.personal`)."""


@dataclass(frozen=True)
class Scored:
    """One model version (1 or more) and the metrics of the round that made it."""

    version: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Aim:
    """What is wanted: a metric's name, and whether more of it is better. An empty name: whatever there is.

    `personal`: models have a part that is each device's own, so what they are on the aggregator's test set says little.
    """

    metric: str = ""
    higher: bool = True
    personal: bool = False

    def of(self, scored: Sequence[Scored]) -> Aim:
        """The same with a name: of the default metrics, one that these models have; nameless if they have none."""
        if self.metric:
            return self
        for names, higher in ((HIGHER, True), (LOWER, False)):
            for name in names[1:] if self.personal else names:
                if any(name in each.metrics for each in scored):
                    return Aim(name, higher)
        return self

    def gain(self, new: float, old: float) -> float:
        """How much better `new` is; negative: worse."""
        return new - old if self.higher else old - new


def values(scored: Sequence[Scored], aim: Aim) -> list[tuple[int, float]]:
    """(version, value) of those models that have a finite value, in order of versions."""
    found = [(each.version, each.metrics[aim.metric]) for each in scored if aim.metric in each.metrics]
    return sorted((version, value) for version, value in found if math.isfinite(value))


def best(scored: Sequence[Scored], aim: Aim) -> tuple[int, float] | None:
    """The best version and its value; the earliest of equals. None: nothing was measured."""
    named = aim.of(scored)
    top: tuple[int, float] | None = None
    for version, value in values(scored, named):
        if top is None or named.gain(value, top[1]) > 0:
            top = (version, value)
    return top


def stale(scored: Sequence[Scored], aim: Aim, min_delta: float) -> int:
    """How many judged models there are since one that was better than all before by more than `min_delta`."""
    named, since = aim.of(scored), 0
    top: float | None = None
    for _, value in values(scored, named):
        if top is None or named.gain(value, top) > min_delta:
            top, since = value, 0
        else:
            since += 1
    return since


def why_stop(scored: Sequence[Scored], aim: Aim, patience: int, min_delta: float) -> str:
    """Why a run ends early, in one line; "" while it goes on. `patience` 0: never."""
    top = best(scored, aim)
    if not patience or top is None or stale(scored, aim, min_delta) < patience:
        return ""
    name = aim.of(scored).metric
    by = f" by more than {min_delta:g}" if min_delta else ""
    return (
        f"{name} has not improved{by} for {patience} models; the best is version {top[0]} with {top[1]:.4f}"
    )
