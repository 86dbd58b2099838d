"""*Pure.* FedProx: Li et al., Federated Optimization in Heterogeneous Networks, 2020.

Algorithm 2 there: each client minimises F_k(w) + mu/2 * |w - w_t|^2, the server averages as FedAvg does.
"""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.strategies.base import Strategy
from fedless.protocol.messages import ClientRule


@dataclass(frozen=True)
class FedProx(Strategy):
    """FedAvg of clients that are drawn towards the round's model by `proximal_mu`."""

    def complaints(self, rule: ClientRule) -> list[str]:
        """Without its proximal term FedProx would silently be FedAvg."""
        if not rule.proximal_mu:
            return ["client.proximal_mu: expected a number above 0 with fedprox, found 0; use fedavg"]
        return []
