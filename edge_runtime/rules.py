"""*Pure.* What a strategy's client rule makes of a finished local training: FedNova, q-FedAvg, SCAFFOLD.

Called by `loops`, on the device. Each rule turns the delta into what the server's rule takes the weighted mean of, and
may add named numbers (means over the client's examples, as the loss is one) or a second vector behind the first. So a
sum over clients is all that a server needs, and each of them works under masks.

FedNova: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, 2020.
q-FedAvg: Li et al., Fair Resource Allocation in Federated Learning, 2020.
SCAFFOLD: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_runtime.optimizers import Vector
from fedless.protocol.client_rule import ClientRule, Optimizer

NORMALIZER = "normalizer"
FAIR_WEIGHT = "fair_weight"
LOSS_MIN = 1e-10
"""A loss of 0 has no power below 0."""


@dataclass(frozen=True)
class Given:
    """What a rule needs beside the model: the mean loss before training, the fleet's and the own control variate."""

    loss: float = 0.0
    control: Vector | None = None
    own_control: Vector | None = None

    def correction(self) -> Vector | None:
        """c - c_i, float32[P]; None where both are 0."""
        if self.own_control is None:
            return self.control
        return -self.own_control if self.control is None else self.control - self.own_control


def finish(rule: ClientRule, delta: Vector, steps: int, given: Given) -> tuple[Vector, dict[str, float]]:
    """The update to report, from the delta float32[P] of so many steps (changed in place), and numbers beside it."""
    told: dict[str, float] = {}
    if rule.normalized:
        told[NORMALIZER] = normalizer(rule, steps)
        delta /= np.float32(told[NORMALIZER])
    if rule.fair_q:
        factor, told[FAIR_WEIGHT] = fairness(rule, given.loss, float(np.dot(delta, delta)))
        delta *= np.float32(factor)
    if rule.control:
        delta = np.concatenate([delta, control_change(rule, delta, steps, given.control)])
    return delta, told


def normalizer(rule: ClientRule, steps: int) -> float:
    """FedNova's |a|_1: how far so many gradients of 1 take the weights, in units of the learning rate.

    Without momentum and proximal term it is the number of steps. Wang et al., section 4, have closed forms for either
    of them; this adds up the same recurrence, for both together as well.
    """
    momentum = rule.momentum if rule.optimizer is Optimizer.MOMENTUM else 0.0
    pull = rule.learning_rate * rule.proximal_mu
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0 - pull * moved
        moved += velocity
    return moved


def fairness(rule: ClientRule, loss: float, square: float) -> tuple[float, float]:
    """q-FedAvg's factor of the delta and weight h, from the loss F before training and |delta|^2; both divided by L.

    Algorithm 2: Delta = F^q L delta, h = q F^(q-1) |L delta|^2 + L F^q, with L = 1 / learning rate. An h beyond
    `fair_limit` is brought down to it, and the factor with it: such a client counts for less, and pulls no further.
    """
    base, q = max(loss, LOSS_MIN), rule.fair_q
    weight = q * base ** (q - 1) * square / rule.learning_rate + base**q
    if not math.isfinite(weight):
        return 0.0, rule.fair_limit
    scale = min(1.0, rule.fair_limit / weight)
    return scale * base**q, scale * weight


def control_change(rule: ClientRule, delta: Vector, steps: int, control: Vector | None) -> Vector:
    """SCAFFOLD's c_i+ - c_i, option II of algorithm 1: -c + (x - y) / (K eta), float32[P]."""
    change: Vector = delta * np.float32(-1.0 / (steps * rule.learning_rate))
    if control is not None:
        change -= control
    return change
