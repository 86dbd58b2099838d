"""*Pure.* Strategies that count reports on older models: FedBuff, FedLesScan's late updates, Apodotiko's rule.

FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2022. FedLesScan: Elzohairy et al.,
FedLesScan: Mitigating Stragglers in Serverless Federated Learning, 2022. Apodotiko: Chadha et al., Apodotiko: Enabling
Efficient Serverless Federated Learning in Heterogeneous Environments, 2024.

FedLesScan and Apodotiko average weights; clients here report deltas, and a late delta is added where the model is now,
instead of drawing it back to where it was. A client that reported is asked again when the next round opens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.staleness import Late, Weighing
from aggregator.strategies.base import Beside, Strategy


@dataclass(frozen=True)
class FedBuff(Strategy):
    """Keeps a cohort at work, each client on the model that it got, and makes a model of each `buffer` reports.

    Algorithm 1 there: the mean over the buffer of s(tau) Delta, with s(tau) = 1 / sqrt(1 + tau), times the server's
    learning rate; weights are not divided by their own sum. Examples weigh as in FedAvg.
    """

    buffer: int = 10
    learning_rate: float = 1.0
    tolerance: int = 20

    @property
    def late(self) -> Late:
        """Reports count whichever model they are of, up to `tolerance` versions behind."""
        return Late(self.tolerance, Weighing.ROOT, counts=True, renormalised=False)

    def closes_at(self, wanted: int) -> int:
        """The buffer, but no more than there are clients at work."""
        return min(self.buffer, wanted)

    def wakes(self, wanted: int, busy: int) -> int:
        """As many as are missing to the cohort."""
        return max(0, wanted - busy)

    def scale(self, beside: Beside) -> Sequence[float]:  # noqa: ARG002 - nothing beside
        """The server's learning rate."""
        return (self.learning_rate,)


@dataclass(frozen=True)
class FedLesScan(Strategy):
    """FedAvg, and what came too late for its round counts in one of the next `tolerance`, weighing (t_k+1)/(t+1).

    There, algorithm 3. Weights are divided by their sum, which the authors' own code forgets.
    """

    tolerance: int = 2

    @property
    def late(self) -> Late:
        """Late reports are added to what a round's own cohort reports, and nobody waits for them."""
        return Late(self.tolerance, Weighing.SHARE, counts=False, renormalised=True)


@dataclass(frozen=True)
class Apodotiko(Strategy):
    """Makes a model as soon as the share `ratio` of a cohort's number has reported, this round's or earlier ones'.

    There, section 4: weights 1 / sqrt(age + 1), divided by their sum; each round asks a whole cohort of idle clients.
    """

    ratio: float
    tolerance: int = 20

    @property
    def late(self) -> Late:
        """Reports count whichever model they are of, up to `tolerance` versions behind."""
        return Late(self.tolerance, Weighing.ROOT, counts=True, renormalised=True)

    def closes_at(self, wanted: int) -> int:
        """The paper's ceil(CR n)."""
        return math.ceil(self.ratio * wanted - 1e-9)  # 0.3 * 10 must not become 4
