"""Client rules against hand-computed numbers, and what the papers prove of them on quadratic losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from aggregator.strategies import make
from aggregator.strategies.base import Beside, Strategy
from edge_runtime.optimizers import LocalOptimizer, Vector
from edge_runtime.rules import FAIR_WEIGHT, NORMALIZER, Given, fairness, finish, normalizer
from fedless.protocol.messages import ClientRule, Optimizer

RATE = 0.1


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


# -- FedNova


def test_without_momentum_the_normalizer_counts_steps() -> None:
    assert normalizer(ClientRule(Optimizer.SGD, RATE), 7) == 7


def test_momentums_normalizer_is_the_papers() -> None:
    """Wang et al. 2020, section 4: |a|_1 = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)."""
    rho, steps = 0.9, 13
    expected = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert normalizer(ClientRule(Optimizer.MOMENTUM, RATE, momentum=rho), steps) == pytest.approx(expected)


def test_the_proximal_normalizer_is_the_papers() -> None:
    """There: a = [(1 - alpha)^(tau - 1), ..., 1] with alpha = eta mu, so |a|_1 = (1 - (1 - alpha)^tau) / alpha."""
    alpha, steps = RATE * 0.5, 13
    found = normalizer(ClientRule(Optimizer.SGD, RATE, proximal_mu=0.5), steps)
    assert found == pytest.approx((1 - (1 - alpha) ** steps) / alpha)


@pytest.mark.parametrize(
    "rule",
    [
        ClientRule(Optimizer.SGD, RATE),
        ClientRule(Optimizer.MOMENTUM, RATE, momentum=0.8),
        ClientRule(Optimizer.MOMENTUM, RATE, momentum=0.8, proximal_mu=0.7),
    ],
)
def test_the_normalizer_is_what_the_optimizer_does_with_constant_gradients(rule: ClientRule) -> None:
    weights = vector(0.0)
    optimizer = LocalOptimizer(rule, vector(0.0))
    for _ in range(9):
        optimizer.step(weights, vector(1.0))
    assert -float(weights[0]) / RATE == pytest.approx(normalizer(rule, 9), rel=1e-5)


# -- q-FedAvg


def test_fairness_by_hand() -> None:
    """F = 2, q = 1, L = 1 / 0.5, |delta| = 5: Delta / L = 2 delta, h / L = 1 * 1 * 2 * 25 + 2 = 52."""
    rule = ClientRule(learning_rate=0.5, fair_q=1.0, fair_limit=100.0)
    update, told = finish(rule, vector(3.0, 4.0), 3, Given(loss=2.0))
    assert (update.tolist(), told) == ([6.0, 8.0], {FAIR_WEIGHT: 52.0})


def test_a_client_beyond_the_limit_counts_for_less_in_both_sums() -> None:
    rule = ClientRule(learning_rate=0.5, fair_q=1.0, fair_limit=26.0)
    update, told = finish(rule, vector(3.0, 4.0), 3, Given(loss=2.0))
    assert (update.tolist(), told) == ([3.0, 4.0], {FAIR_WEIGHT: 26.0})


@pytest.mark.parametrize(("loss", "square"), [(0.0, 1.0), (1e300, 1e300), (float("nan"), 1.0)])
def test_an_absurd_loss_stays_within_the_limit(loss: float, square: float) -> None:
    factor, weight = fairness(ClientRule(fair_q=0.5, fair_limit=10.0), loss, square)
    assert 0.0 <= factor < float("inf")
    assert 0.0 <= weight <= 10.0


def test_q_fedavg_by_hand() -> None:
    """Two clients, losses 2 and 1, deltas 3 and -1, L = 1, q = 1: (2 * 3 + 1 * -1) / (9 + 2 + 1 + 1)."""
    strategy = make("qfedavg", {})
    rule = strategy.client(ClientRule(learning_rate=1.0))
    reports = [finish(rule, vector(d), 1, Given(loss=f)) for d, f in ((3.0, 2.0), (-1.0, 1.0))]
    assert next_model(strategy, 0.0, reports) == pytest.approx(5 / 13)


# -- SCAFFOLD


def test_the_change_of_a_control_variate_by_hand() -> None:
    """Option II: c_i+ - c_i = -c + (x - y) / (K eta), with x - y = -delta, K = 4, eta = 0.5."""
    rule = ClientRule(learning_rate=0.5, control=True)
    update, told = finish(rule, vector(1.0, -2.0), 4, Given(control=vector(0.25, 0.0)))
    assert (update.tolist(), told) == ([1.0, -2.0, -0.75, 1.0], {})


def test_steps_are_corrected_by_both_variates() -> None:
    given = Given(control=vector(0.5), own_control=vector(2.0))
    weights = vector(0.0)
    LocalOptimizer(ClientRule(Optimizer.SGD, 1.0), weights.copy(), given.correction()).step(
        weights, vector(0.25)
    )
    assert weights.tolist() == [-(0.25 + 0.5 - 2.0)]
    assert Given().correction() is None
    assert Given(own_control=vector(2.0)).correction() == vector(-2.0)


# -- on quadratic losses F_i(x) = a_i / 2 (x - b_i)^2, where the fixed points are known


def train(rule: ClientRule, x: float, a: float, b: float, steps: int, given: Given) -> Vector:
    weights = vector(x)
    optimizer = LocalOptimizer(rule, vector(x), given.correction())
    for _ in range(steps):
        optimizer.step(weights, vector(a) * (weights - vector(b)))
    return finish(rule, weights - vector(x), steps, given)[0]


def next_model(strategy: Strategy, x: float, reports: Sequence[tuple[Vector, dict[str, float]]]) -> float:
    extras = {name: float(np.mean([told[name] for _, told in reports])) for name in reports[0][1]}
    mean = np.mean([update for update, _ in reports], axis=0) * strategy.scale(Beside(extras))
    return float(strategy.step(vector(x), mean.astype(np.float64), [])[0][0])


def after_rounds(name: str, steps: Sequence[int], rounds: int) -> float:
    """Two clients with their optima at 0 and 1, that take so many steps of a small rate."""
    strategy = make(name, {})
    rule = strategy.client(ClientRule(Optimizer.SGD, 0.002))
    x = 0.3
    for _ in range(rounds):
        reports = [
            (train(rule, x, 1.0, b, taken, Given()), {NORMALIZER: normalizer(rule, taken)})
            for b, taken in zip((0.0, 1.0), steps, strict=True)
        ]
        x = next_model(strategy, x, reports)
    return x


def test_fednova_finds_the_optimum_where_fedavg_finds_anothers() -> None:
    """Wang et al. 2020, section 3: with 2 and 8 steps FedAvg minimises the losses weighted 1 : 4, so x = 0.8."""
    assert after_rounds("fedavg", (2, 8), 700) == pytest.approx(0.8, abs=0.01)
    assert after_rounds("fednova", (2, 8), 700) == pytest.approx(0.5, abs=0.01)


def test_scaffold_finds_the_optimum_where_local_steps_drift_from_it() -> None:
    """Karimireddy et al. 2020, section 3: curvatures 1 and 8, optima 0 and 1; the losses' sum has its at 8 / 9."""
    curves, steps = ((1.0, 0.0), (8.0, 1.0)), 10
    plain = ClientRule(Optimizer.SGD, RATE)
    strategy = make("scaffold", {})
    rule = strategy.client(plain)
    drifting = x = 0.0
    fleet = vector(0.0)
    own = [vector(0.0), vector(0.0)]
    for _ in range(60):
        drifting += float(np.mean([train(plain, drifting, a, b, steps, Given()) for a, b in curves]))
        updates = [
            train(rule, x, a, b, steps, Given(control=fleet, own_control=c))
            for (a, b), c in zip(curves, own, strict=True)
        ]
        own = [c + update[1:] for c, update in zip(own, updates, strict=True)]
        mean = np.mean(updates, axis=0).astype(np.float64)[:, None]
        model, (fleet,) = strategy.step(vector(x), mean, [fleet])
        x = float(model[0])
    assert abs(drifting - 8 / 9) > 0.1
    assert x == pytest.approx(8 / 9, abs=1e-3)
    assert float(np.mean(own)) == pytest.approx(float(fleet[0]), abs=1e-4), "c is the mean of the c_i"


def test_q_fedavg_looks_after_the_client_with_the_larger_loss() -> None:
    """Optima 0 and 1; at 0.2 the second's loss is the larger: q-FedAvg goes further towards it than FedAvg does."""
    rule, x = ClientRule(Optimizer.SGD, 0.01), 0.2
    fair = replace(rule, fair_q=2.0, fair_limit=1e3)

    def moved(rule_: ClientRule) -> float:
        reports = []
        for b in (0.0, 1.0):
            given = Given(loss=0.5 * (x - b) ** 2)
            delta = train(rule, x, 1.0, b, 1, Given())
            reports.append(finish(rule_, delta, 1, given))
        strategy = make("qfedavg", {"q": 2.0}) if rule_.fair_q else make("fedavg", {})
        return next_model(strategy, x, reports)

    assert moved(fair) > moved(rule) > x
