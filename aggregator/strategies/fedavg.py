"""*Pure.* FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.

Algorithm 1 there averages the clients' weights, w_{t+1} = sum_k (n_k / n) w^k_{t+1}. Here clients report deltas,
w^k_{t+1} - w_t, and their mean is added to w_t: the same, with a server learning rate of 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.strategies.base import Strategy
from fedless.protocol.messages import ClientRule


@dataclass(frozen=True)
class FedAvg(Strategy):
    """The mean of the updates, weighted by example counts."""

    def complaints(self, rule: ClientRule) -> list[str]:
        """FedAvg has no proximal term."""
        if rule.proximal_mu:
            return [f"client.proximal_mu: expected 0 with fedavg, found {rule.proximal_mu:g}; use fedprox"]
        return []
