"""*Pure.* SCAFFOLD: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020.

Algorithm 1 there: x <- x + eta_g mean(Delta y_i), c <- c + |S|/N mean(Delta c_i), and each client corrects its steps by
c - c_i (`edge_runtime.rules`; it keeps c_i). The paper's means weigh clients alike; here they weigh their examples, as
in FedAvg. N is the number of clients that could have been asked when the round opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aggregator.strategies.base import Beside, Doubles, Floats, Strategy
from fedless.protocol.messages import ClientRule, Optimizer

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold(Strategy):
    """FedAvg of clients whose drift is corrected by control variates; the fleet's is kept beside the model."""

    learning_rate: float = 1.0

    @property
    def state(self) -> Mapping[str, float]:
        """c, from 0."""
        return {CONTROL: 0.0}

    def client(self, rule: ClientRule) -> ClientRule:
        """Each client keeps a control variate and reports its change."""
        return replace(rule, control=True)

    def scale(self, beside: Beside) -> Sequence[float]:
        """eta_g, and |S|/N."""
        return self.learning_rate, beside.share

    def complaints(self, rule: ClientRule) -> list[str]:
        """(x - y) / (K eta) is the mean gradient of plain gradient steps only."""
        problems = []
        if rule.optimizer is not Optimizer.SGD:
            problems.append(f"client.optimizer: expected sgd with scaffold, found {rule.optimizer.value}")
        if not rule.learning_rate:
            problems.append("client.learning_rate: expected a number above 0 with scaffold, found 0")
        return problems

    def step(self, model: Floats, mean: Doubles, state: Sequence[Floats]) -> tuple[Floats, Sequence[Floats]]:
        """Both sums; `mean` is float64[2, n]."""
        return (model + mean[0]).astype(np.float32), [(state[0] + mean[1]).astype(np.float32)]
