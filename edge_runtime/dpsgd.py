"""*Pure.* DP-SGD (Abadi et al. 2016, algorithm 1): each example's gradient clipped, the batch's sum with noise.

Called by `loops` in the instance, where a task's client rule asks for it (`example_clip`, `example_noise`): local
differential privacy, which trusts nobody beyond this device. The noise is a discrete Gaussian from a stream that the
OS's randomness seeds, in steps that are small beside it, so that no bit of a gradient shows through the last bits of a
float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from edge_runtime.optimizers import BLOCK, Vector
from fedless.protocol.client_rule import ClientRule
from fedless.protocol.crypto import Prg, stream
from fedless.protocol.privacy import bound_before_rounding, discrete_gaussian, l2_norm

SUM_BITS, SIGMA_BITS = 50, 36
"""Of a sum in steps: its largest value and its noise, so that binary64 holds every number exactly."""


class PrivateGradients:
    """Noised mean gradients of one local training.

    `batch` B: the sum is divided by it also where a batch is smaller, since its size would tell. `seed`: 32 fresh
    bytes of the OS's randomness.
    """

    def __init__(self, rule: ClientRule, parameters: int, batch: int, seed: bytes) -> None:
        clip, deviation = rule.example_clip, rule.example_noise * rule.example_clip
        room = min(2**SUM_BITS / (batch * clip), 2**SIGMA_BITS / deviation)
        self.steps = 2.0 ** math.floor(math.log2(room))
        self.sigma = math.ceil(deviation * self.steps)
        self._bound = bound_before_rounding(clip, parameters, self.steps)
        self._batch = batch
        self._stream = stream(Prg.AES, seed)
        self._total = np.zeros(parameters, np.float64)

    def mean(self, gradients: Iterable[Vector]) -> Vector:
        """The noised mean of a batch's gradients, one float32[P] for each example; they are read one by one."""
        self._total[:] = 0.0
        for gradient in gradients:
            norm = l2_norm(gradient)
            factor = self.steps * (min(1.0, self._bound / norm) if norm else 1.0)
            for low in range(0, gradient.size, BLOCK):
                part = slice(low, low + BLOCK)
                self._total[part] += np.rint(np.multiply(gradient[part], factor, dtype=np.float64))
        self._total += discrete_gaussian(self._stream.update(bytes(32)), self.sigma, self._total.size)
        found: Vector = (self._total / (self.steps * self._batch)).astype(np.float32)
        return found
