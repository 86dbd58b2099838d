"""The local optimisers against their formulas, written out in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.optimizers import BLOCK, LocalOptimizer
from fedless.protocol.messages import ClientRule, Optimizer

SIZE = BLOCK + 17  # more than one block, and a short last one
RULES = [
    ClientRule(Optimizer.SGD, 0.1),
    ClientRule(Optimizer.MOMENTUM, 0.1, momentum=0.8),
    ClientRule(Optimizer.ADAM, 0.01),
    ClientRule(Optimizer.ADAM, 0.01, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.05),
    ClientRule(Optimizer.SGD, 0.1, weight_decay=0.2, clip_norm=0.5),
    ClientRule(Optimizer.SGD, 0.1, proximal_mu=0.7),
    ClientRule(Optimizer.MOMENTUM, 0.1, proximal_mu=0.3, clip_norm=2.0, weight_decay=0.01),
]


def reference(
    rule: ClientRule, start: NDArray[np.float64], gradients: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        step = g + rule.proximal_mu * (w - start)
        norm = np.linalg.norm(step)
        if rule.clip_norm and norm > rule.clip_norm:
            step = step * rule.clip_norm / norm
        w = w - rule.learning_rate * rule.weight_decay * w
        if rule.optimizer is Optimizer.SGD:
            w = w - rule.learning_rate * step
        elif rule.optimizer is Optimizer.MOMENTUM:
            m = rule.momentum * m - rule.learning_rate * step
            w = w + m
        else:
            m = rule.beta1 * m + (1 - rule.beta1) * step
            v = rule.beta2 * v + (1 - rule.beta2) * step**2
            rate = rule.learning_rate * np.sqrt(1 - rule.beta2**t) / (1 - rule.beta1**t)
            w = w - rate * m / (np.sqrt(v) + rule.epsilon)
    return w


@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_follow_the_formula(rule: ClientRule) -> None:
    random = np.random.default_rng(0)
    start = random.standard_normal(SIZE).astype(np.float32)
    gradients = [(random.standard_normal(SIZE) * 0.1).astype(np.float32) for _ in range(10)]
    weights = start.copy()
    optimizer = LocalOptimizer(rule, start)
    for gradient in gradients:
        optimizer.step(weights, gradient.copy())
    expected = reference(rule, start.astype(np.float64), [g.astype(np.float64) for g in gradients])
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_allocates_no_vector(rule: ClientRule) -> None:
    size = 20 * BLOCK
    weights, gradient = np.ones(size, np.float32), np.ones(size, np.float32)
    optimizer = LocalOptimizer(rule, weights.copy())
    optimizer.step(weights, gradient)
    tracemalloc.start()
    optimizer.step(weights, gradient)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * size / 4


def test_the_start_is_not_changed() -> None:
    start = np.ones(10, np.float32)
    start.flags.writeable = False
    weights = start.copy()
    LocalOptimizer(ClientRule(Optimizer.SGD, 0.5, proximal_mu=1.0), start).step(
        weights, np.ones(10, np.float32)
    )
    np.testing.assert_array_equal(weights, np.full(10, 0.5, np.float32))


def test_fedprox_pulls_back_to_the_start() -> None:
    start = np.zeros(4, np.float32)
    optimizer = LocalOptimizer(ClientRule(Optimizer.SGD, 0.1, proximal_mu=2.0), start)
    weights = np.full(4, 1.0, np.float32)
    for _ in range(50):
        optimizer.step(weights, np.zeros(4, np.float32))
    assert np.abs(weights).max() < 1e-4


def test_a_gradient_within_the_norm_is_not_clipped() -> None:
    weights = np.zeros(4, np.float32)
    LocalOptimizer(ClientRule(Optimizer.SGD, 1.0, clip_norm=3.0), weights.copy()).step(
        weights, np.ones(4, np.float32)
    )
    np.testing.assert_array_equal(weights, np.full(4, -1.0, np.float32))
