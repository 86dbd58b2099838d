"""*Pure.* FedNova: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
2020.

Who takes more steps than others pulls the mean towards its own optimum. There (equation 8, with p_i = n_i / n):
x <- x - tau_eff sum_i p_i eta d_i, where d_i is the update by |a_i|_1, and tau_eff = sum_i p_i |a_i|_1. Clients divide
their own deltas and report |a_i|_1 beside them (`edge_runtime.rules`): two means, and their product.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aggregator.strategies.base import Beside, Strategy
from fedless.protocol.messages import ClientRule, Optimizer

NORMALIZER = "normalizer"


@dataclass(frozen=True)
class FedNova(Strategy):
    """The mean of the normalised updates, times the mean of what they were divided by."""

    def client(self, rule: ClientRule) -> ClientRule:
        """Each client normalises its own update."""
        return replace(rule, normalized=True)

    def extras(self, rule: ClientRule, max_examples: int) -> Mapping[str, float]:
        """|a|_1, at most as many steps as the task allows, times what momentum makes of each."""
        steps = rule.max_steps or rule.local_epochs * max_examples
        momentum = rule.momentum if rule.optimizer is Optimizer.MOMENTUM else 0.0
        return {NORMALIZER: steps / (1 - momentum)}

    def scale(self, beside: Beside) -> Sequence[float]:
        """tau_eff."""
        return (beside.extras[NORMALIZER],)

    def complaints(self, rule: ClientRule) -> list[str]:
        """Steps that are no sum of gradients cannot be normalised."""
        problems = []
        if rule.optimizer is Optimizer.ADAM:
            problems.append("client.optimizer: expected sgd or momentum with fednova, found adam")
        if rule.optimizer is Optimizer.MOMENTUM and rule.momentum >= 1:
            problems.append(
                f"client.momentum: expected a number below 1 with fednova, found {rule.momentum:g}"
            )
        if rule.weight_decay:
            problems.append(f"client.weight_decay: expected 0 with fednova, found {rule.weight_decay:g}")
        return problems
