"""*Pure.* Rules that a few lying clients cannot pull where they want; each looks at single updates.

So they work in plain rounds only. No rule here weighs clients by their example counts: that number is the client's
own word. They are called with all reports of a round in blocks float32[k, n]: k clients, n coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from aggregator.strategies.base import Doubles, Floats, Strategy


@dataclass(frozen=True)
class Robust(Strategy):
    """The mean of all reports, each with its weight; rules differ in the weights or in the mean."""

    def weights(self, reports: Iterable[Floats], count: int) -> Doubles:  # noqa: ARG002 - others look at them
        """The weight of each of the `count` clients, float64[k]; may read all `reports` once, block by block."""
        return np.full(count, 1.0 / count)

    def mean(self, reports: Floats, weights: Doubles) -> Doubles:
        """A block float64[n] of the mean update, of a block float32[k, n] of all clients' updates."""
        mean: Doubles = weights @ reports.astype(np.float64)
        return mean


@dataclass(frozen=True)
class Median(Robust):
    """Coordinate by coordinate the median: Yin et al., Byzantine-Robust Distributed Learning, 2018, definition 1."""

    @property
    def least_reports(self) -> int:
        """With two the median is the mean."""
        return 3

    def mean(self, reports: Floats, weights: Doubles) -> Doubles:  # noqa: ARG002 - all are alike
        """Of an even number the mean of the two in the middle."""
        ordered = np.sort(reports, axis=0)  # many times as fast as np.median along this axis
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        middle: Doubles = (low.astype(np.float64) + high) / 2
        return middle


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """Coordinate by coordinate the mean without the share `trim` on each side: Yin et al. 2018, definition 2."""

    trim: float = 0.1

    @property
    def least_reports(self) -> int:
        """One is cut off on each side at least."""
        return 3

    def mean(self, reports: Floats, weights: Doubles) -> Doubles:  # noqa: ARG002 - all are alike
        """Cuts `trim` times the number of clients on each side, rounded up, as long as something is left."""
        count = len(reports)
        cut = min(math.ceil(self.trim * count - 1e-9), (count - 1) // 2)  # 0.1 * 30 must not become 4
        mean: Doubles = np.sort(reports, axis=0)[cut : count - cut].mean(axis=0, dtype=np.float64)
        return mean


@dataclass(frozen=True)
class NormClipping(Robust):
    """The mean of updates whose L2 norms are scaled down to `norm`: Sun et al., Can You Really Backdoor Federated
    Learning?, 2019.
    """  # noqa: D205

    norm: float

    def weights(self, reports: Iterable[Floats], count: int) -> Doubles:
        """min(1, norm / |u_k|) / k."""
        squares = np.zeros(count)
        for block in reports:
            squares += np.square(block, dtype=np.float64).sum(axis=1)
        return np.minimum(1.0, self.norm / np.sqrt(np.maximum(squares, 1e-300))) / count


@dataclass(frozen=True)
class Krum(Robust):
    """The mean of the `keep` updates that are nearest to their neighbours; 1 is Krum, more is Multi-Krum.

    Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017: with n clients of
    which f = `byzantine` may lie, 2f + 2 < n, the score of an update is the sum of its squared distances to the
    n - f - 2 nearest other ones.
    """

    byzantine: int
    keep: int = 1

    @property
    def least_reports(self) -> int:
        """2f + 3, and for Multi-Krum no fewer than keep + f + 2."""
        return max(2 * self.byzantine + 3, self.keep + self.byzantine + 2)

    def weights(self, reports: Iterable[Floats], count: int) -> Doubles:
        """1 / keep for the best scores, 0 for the others; the earlier client wins a tie."""
        distances = np.zeros((count, count))
        for block in reports:
            _add_distances(distances, block.astype(np.float64))
        np.fill_diagonal(distances, np.inf)
        nearest = np.sort(distances, axis=1)[:, : count - self.byzantine - 2]
        best = np.argsort(nearest.sum(axis=1), kind="stable")[: self.keep]
        weights = np.zeros(count)
        weights[best] = 1.0 / self.keep
        return weights

    def mean(self, reports: Floats, weights: Doubles) -> Doubles:
        """The kept rows only: a refused row's largest numbers must not cost the others their precision."""
        return super().mean(reports[weights > 0], weights[weights > 0])


def _add_distances(distances: Doubles, block: Doubles) -> None:
    """Adds a block's part float64[k, n] of the squared distances; differences first, so that near ones stay exact."""
    for row in range(len(block) - 1):
        apart = block[row + 1 :] - block[row]
        squares = np.einsum("kn,kn->k", apart, apart)
        distances[row, row + 1 :] += squares
        distances[row + 1 :, row] += squares
