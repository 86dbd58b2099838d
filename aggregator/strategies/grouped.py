"""*Pure.* Rules that few lying clients cannot pull where they want, and that masks allow: they look at cohorts' means.

Velicheti, Xia and Koyejo, Secure Byzantine-Robust Distributed Learning via Clustering, 2021, algorithm 1: clients are
dealt out to cohorts by chance, a secure sum gives the mean of each, and a robust rule is applied to these means. A lie
spoils the mean of its own cohort, whatever its size; the rule holds as long as fewer than half of the cohorts (or as
many as are cut off on a side) have a liar. Cohorts count alike, whatever number of examples their members claim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aggregator.strategies.base import Doubles, Floats, Strategy
from aggregator.strategies.robust import Median, TrimmedMean
from fedless.protocol.messages import Mode


@dataclass(frozen=True)
class Grouped(Strategy):
    """The plain mean of the cohorts' means; rules differ in it."""

    @property
    def least_cohorts(self) -> int:
        """With two the median is the mean, and nothing can be cut off."""
        return 3

    def of_cohorts(self, means: Floats) -> Doubles:
        """A block float64[n] of the update, of a block float32[k, n] of the k cohorts' means."""
        mean: Doubles = means.mean(axis=0, dtype=np.float64)
        return mean


@dataclass(frozen=True)
class GroupMedian(Grouped):
    """Coordinate by coordinate the median of the cohorts' means."""

    def of_cohorts(self, means: Floats) -> Doubles:
        """Of an even number of cohorts the mean of the two in the middle."""
        return Median().mean(means, np.ones(len(means)))


@dataclass(frozen=True)
class GroupTrimmedMean(Grouped):
    """Coordinate by coordinate the mean of the cohorts' means without the share `trim` on each side."""

    trim: float = 0.25

    def of_cohorts(self, means: Floats) -> Doubles:
        """Cuts `trim` times the number of cohorts on each side, rounded up, as long as something is left."""
        return TrimmedMean(self.trim).mean(means, np.ones(len(means)))


def unsplit(strategy: Strategy, mode: Mode) -> str:
    """Why a rule over cohorts' means cannot work in a mode, and what can; empty if it can."""
    if not isinstance(strategy, Grouped) or mode is Mode.PAIRWISE:
        return ""
    if mode is Mode.PLAIN:
        return "it takes the means of cohorts, which mode pairwise has; here single updates can be seen: use median"
    return "it takes the means of cohorts; the helper gives one sum of all clients: use mode pairwise"
