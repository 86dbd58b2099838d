"""The client's local optimisers: in place, in numpy, on the flat float32 vector.

Called by `trainer` after every `grad`. A rule is a name and numbers (`messages.ClientRule`), the same for
every bundle. Everything runs block by block, so that besides the weights, the gradient and the moments no
vector of P elements is ever made, and a block stays in the cache.

Formulas and defaults are those of Keras 3 (`SGD`, `Adam`, decoupled `weight_decay`, clipping by global norm),
so that a run can be compared with TensorFlow. FedProx: Li et al. 2020, section 3.2: the gradient of mu/2 * |w
- w0|^2. SCAFFOLD: Karimireddy et al. 2020, algorithm 1: c - c_i is added to each gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.client_rule import ClientRule, Optimizer

Vector = NDArray[np.float32]
BLOCK = 32_768


class LocalOptimizer:
    """One rule with its moments, for one local training that begins at `start` (float32[P], not changed).

    `correction` float32[P] is added to each gradient, after clipping.
    """

    def __init__(self, rule: ClientRule, start: Vector, correction: Vector | None = None) -> None:
        self._rule = rule
        self._start = start
        self._correction = correction
        self._steps = 0
        moments = {Optimizer.SGD: 0, Optimizer.MOMENTUM: 1, Optimizer.ADAM: 2}[rule.optimizer]
        self._moments = [np.zeros_like(start) for _ in range(moments)]
        self._scratch = np.empty(min(BLOCK, start.size), np.float32)

    @property
    def moments(self) -> list[Vector]:
        """What it keeps from step to step beside their number, float32[P] each."""
        return self._moments

    def go_on(self, steps: int, moments: Sequence[Vector]) -> None:
        """As if it had made so many steps and come to these moments."""
        self._steps = steps
        self._moments = list(moments)

    def step(self, weights: Vector, gradient: Vector) -> None:
        """One step: changes `weights` and overwrites `gradient`, both float32[P]."""
        self._steps += 1
        if self._rule.proximal_mu:
            self._add_proximal(weights, gradient)
        scale = self._clip_scale(gradient)
        for low in range(0, weights.size, BLOCK):
            part = slice(low, min(low + BLOCK, weights.size))
            if scale < 1.0:
                gradient[part] *= scale
            if self._correction is not None:
                gradient[part] += self._correction[part]
            if self._rule.weight_decay:
                weights[part] *= 1.0 - self._rule.learning_rate * self._rule.weight_decay
            self._apply(weights[part], gradient[part], part)

    def _apply(self, weights: Vector, gradient: Vector, part: slice) -> None:
        rule = self._rule
        scratch = self._scratch[: weights.size]
        if rule.optimizer is Optimizer.ADAM:
            self._adam(weights, gradient, part, scratch)
            return
        gradient *= rule.learning_rate
        if rule.optimizer is Optimizer.MOMENTUM:
            velocity = self._moments[0][part]
            velocity *= rule.momentum
            velocity -= gradient
            weights += velocity
        else:
            weights -= gradient

    def _adam(self, weights: Vector, gradient: Vector, part: slice, scratch: Vector) -> None:
        """Kingma and Ba 2015, with the bias corrections folded into the step size (the end of section 2)."""
        rule = self._rule
        mean, square = self._moments[0][part], self._moments[1][part]
        np.subtract(gradient, mean, out=scratch)
        scratch *= 1.0 - rule.beta1
        mean += scratch
        np.multiply(gradient, gradient, out=scratch)
        scratch -= square
        scratch *= 1.0 - rule.beta2
        square += scratch
        np.sqrt(square, out=scratch)
        scratch += rule.epsilon
        np.divide(mean, scratch, out=scratch)
        correction = math.sqrt(1.0 - rule.beta2**self._steps) / (1.0 - rule.beta1**self._steps)
        scratch *= rule.learning_rate * correction
        weights -= scratch

    def _add_proximal(self, weights: Vector, gradient: Vector) -> None:
        for low in range(0, weights.size, BLOCK):
            part = slice(low, min(low + BLOCK, weights.size))
            scratch = self._scratch[: part.stop - low]
            np.subtract(weights[part], self._start[part], out=scratch)
            scratch *= self._rule.proximal_mu
            gradient[part] += scratch

    def _clip_scale(self, gradient: Vector) -> float:
        """The factor that brings the gradient's L2 norm down to `clip_norm`; 1.0 where it is within."""
        if not self._rule.clip_norm:
            return 1.0
        norm = math.sqrt(float(np.dot(gradient, gradient)))
        return self._rule.clip_norm / norm if norm > self._rule.clip_norm else 1.0
