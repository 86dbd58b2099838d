"""*Pure.* Strategies: from the sum of a round's updates to the next model, one file each.

A strategy declares the client's rule (a name and numbers in the task) and the server's rule. It works block by
block on flat arrays, so that a model never has to be in memory twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aggregator.strategies.fedavg import FedAvg
from aggregator.strategies.fedprox import FedProx
from fedless.protocol.messages import ClientRule


class Strategy(Protocol):
    """What the run's driver needs of a strategy."""

    def complaints(self, rule: ClientRule) -> list[str]:
        """What is wrong with the task's client rule for this strategy, in words; empty: nothing."""
        ...

    def next_block(
        self, model: npt.NDArray[np.float32], total: npt.NDArray[np.float64], weight: float
    ) -> npt.NDArray[np.float32]:
        """A block of the next model: float32[n] from the present block, float32[n], and the block of the sum.

        `total` is float64[n], the sum of updates times weights; `weight` is the sum of weights, above 0.
        """
        ...


STRATEGIES: Mapping[str, Strategy] = {"fedavg": FedAvg(), "fedprox": FedProx()}
"""By the name that a task gives."""
