"""*Pure.* FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.

Algorithm 1 there averages the clients' weights, w_{t+1} = sum_k (n_k / n) w^k_{t+1}. Here clients report deltas,
w^k_{t+1} - w_t, and their mean is added to w_t: the same, with a server learning rate of 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedless.protocol.messages import ClientRule


class FedAvg:
    """The mean of the updates, weighted by example counts."""

    def complaints(self, rule: ClientRule) -> list[str]:
        """FedAvg has no proximal term."""
        if rule.proximal_mu:
            return [f"client.proximal_mu: expected 0 with fedavg, found {rule.proximal_mu:g}; use fedprox"]
        return []

    def next_block(
        self, model: npt.NDArray[np.float32], total: npt.NDArray[np.float64], weight: float
    ) -> npt.NDArray[np.float32]:
        """Model plus mean update, added in float64: float32[n]."""
        return (model + total / weight).astype(np.float32)
