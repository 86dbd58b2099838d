"""*Pure.* Initial weights, in numpy, from a seed: Keras' default initialisers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Generator = np.random.Generator


def _glorot(random: Generator, shape: Shape) -> NDArray[np.float64]:
    """Glorot and Bengio 2010, uniform: fans count the receptive field."""
    field = math.prod(shape[:-2])
    limit = math.sqrt(6.0 / (field * shape[-2] + field * shape[-1]))
    return random.uniform(-limit, limit, shape)


def _orthogonal(random: Generator, shape: Shape) -> NDArray[np.float64]:
    """Saxe et al. 2013: orthonormal rows or columns, whichever are fewer."""
    tall = random.standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    return q if shape[0] >= shape[1] else q.T


def _uniform(random: Generator, shape: Shape) -> NDArray[np.float64]:
    return random.uniform(-0.05, 0.05, shape)


def _forget(random: Generator, shape: Shape) -> NDArray[np.float64]:
    """An LSTM's bias: 1 for the forget gate (Jozefowicz et al. 2015)."""
    del random
    bias = np.zeros(shape)
    units = shape[0] // 4
    bias[units : 2 * units] = 1.0
    return bias


INITIALIZERS: dict[str, Callable[[Generator, Shape], NDArray[np.float64]]] = {
    "glorot": _glorot,
    "orthogonal": _orthogonal,
    "uniform": _uniform,
    "forget": _forget,
    "zeros": lambda _, shape: np.zeros(shape),
    "ones": lambda _, shape: np.ones(shape),
}


def draw(initial: str, random: Generator, shape: Shape) -> NDArray[np.float32]:
    """One tensor's initial weights, float32 of `shape`."""
    return INITIALIZERS[initial](random, shape).astype(np.float32)
