"""*Pure.* FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification, 2019.

There: v <- beta v + dw, w <- w - v, with dw the mean of w_t - w^k. Reports are deltas w^k - w_t here, so
signs turn: v <- momentum v + mean, w <- w + learning_rate v. A learning rate of 1 is the paper's.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.strategies.base import Doubles, Floats, Strategy


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """FedAvg with momentum on the server."""

    learning_rate: float = 1.0
    momentum: float = 0.9

    @property
    def state(self) -> Mapping[str, float]:
        """v, from 0."""
        return {"momentum": 0.0}

    def step(self, model: Floats, mean: Doubles, state: Sequence[Floats]) -> tuple[Floats, Sequence[Floats]]:
        """The paper's step in float64."""
        velocity = self.momentum * state[0].astype(np.float64) + mean
        return (model + self.learning_rate * velocity).astype(np.float32), [velocity.astype(np.float32)]
