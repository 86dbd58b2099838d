"""*Pure.* FedAdagrad, FedAdam and FedYogi: Reddi et al., Adaptive Federated Optimization, 2021.

Algorithm 2 there, with d the mean update: m <- beta1 m + (1 - beta1) d; v as each rule has it, from tau^2;
x <- x + learning_rate m / (sqrt(v) + tau). There is no bias correction in it. The defaults of beta1, beta2 and tau are
those of the paper's experiments; its best learning rates differ from task to task by powers of ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.strategies.base import Doubles, Floats, Strategy


@dataclass(frozen=True)
class FedAdagrad(Strategy):
    """v <- v + d^2: coordinates that moved much move ever less."""

    learning_rate: float = 0.1
    beta1: float = 0.0
    tau: float = 1e-3

    @property
    def state(self) -> Mapping[str, float]:
        """m from 0, v from tau^2."""
        return {"momentum": 0.0, "second_moment": self.tau**2}

    def step(self, model: Floats, mean: Doubles, state: Sequence[Floats]) -> tuple[Floats, Sequence[Floats]]:
        """Algorithm 2's step on the server, in float64."""
        momentum = self.beta1 * state[0].astype(np.float64) + (1 - self.beta1) * mean
        second = self._second_moment(state[1].astype(np.float64), mean**2)
        new = model + self.learning_rate * momentum / (np.sqrt(second) + self.tau)
        return new.astype(np.float32), [momentum.astype(np.float32), second.astype(np.float32)]

    def _second_moment(self, second: Doubles, square: Doubles) -> Doubles:
        return second + square


@dataclass(frozen=True)
class FedAdam(FedAdagrad):
    """v <- beta2 v + (1 - beta2) d^2: the recent past counts."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99

    def _second_moment(self, second: Doubles, square: Doubles) -> Doubles:
        return self.beta2 * second + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """v <- v - (1 - beta2) d^2 sign(v - d^2): v falls slowly where updates get small."""

    def _second_moment(self, second: Doubles, square: Doubles) -> Doubles:
        moved: Doubles = second - (1 - self.beta2) * square * np.sign(second - square)
        return moved
