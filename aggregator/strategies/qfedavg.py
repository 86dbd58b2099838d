"""*Pure.* q-FedAvg: Li et al., Fair Resource Allocation in Federated Learning, 2020.

Algorithm 2 there: w <- w - sum_k Delta_k / sum_k h_k. Who does badly with the present model pulls more, so that the
losses become more alike. Clients report both terms (`edge_runtime.rules`), divided by L = 1 / their learning rate; the
ratio of two sums is that of two means. The paper draws clients with probability p_k = n_k / n and weighs them alike;
here they are drawn as the task says and weigh n_k. With q = 0 it would be FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aggregator.strategies.base import Beside, Strategy
from fedless.protocol.messages import ClientRule, Optimizer

FAIR_WEIGHT = "fair_weight"


@dataclass(frozen=True)
class QFedAvg(Strategy):
    """FedAvg that looks after those with the largest losses; `limit` bounds h, and so what one client can do."""

    q: float = 1.0
    limit: float = 100.0

    def client(self, rule: ClientRule) -> ClientRule:
        """Each client weighs its own update."""
        return replace(rule, fair_q=self.q, fair_limit=self.limit)

    def extras(self, rule: ClientRule, max_examples: int) -> Mapping[str, float]:  # noqa: ARG002 - the limit says it
        """h / L."""
        return {FAIR_WEIGHT: self.limit}

    def scale(self, beside: Beside) -> Sequence[float]:
        """One by the mean of h / L; without any weight (every loss is 0) there is nothing to do."""
        weight = beside.extras[FAIR_WEIGHT]
        return (1.0 / weight if weight > 0 else 0.0,)

    def complaints(self, rule: ClientRule) -> list[str]:
        """The learning rate stands for 1 / L, which it does of plain gradient steps only."""
        if rule.optimizer is Optimizer.ADAM:
            return ["client.optimizer: expected sgd or momentum with qfedavg, found adam"]
        if not rule.learning_rate:
            return ["client.learning_rate: expected a number above 0 with qfedavg, found 0"]
        return []
