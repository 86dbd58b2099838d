"""Clipping, the discrete Gaussian and its distribution, and the numbers of adaptive clipping."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from itertools import pairwise

import numpy as np
import pytest

from fedless.protocol.errors import Code, LocalError
from fedless.protocol.privacy import (
    _THRESHOLDS,
    SIGMA_MAX,
    Uniforms,
    bound_before_rounding,
    discrete_gaussian,
    is_below_exp,
    l2_clip,
    next_clip,
    vector_multiplier,
)

SEED = bytes(range(32))
DRAWS = 400_000


def test_l2_clip_leaves_a_short_update_alone() -> None:
    update = np.array([0.3, 0.4], dtype=np.float32)
    assert l2_clip(update, 1.0) is False
    assert update.tolist() == pytest.approx([0.3, 0.4])
    assert l2_clip(update, 0.25) is True
    assert float(np.linalg.norm(update)) == pytest.approx(0.25, rel=1e-6)


def test_rounded_update_is_within_the_clip_whatever_the_rounding() -> None:
    """Every coordinate is moved by a whole step away from zero: the worst that rounding can do."""
    dimension, scale, clip = 5000, 70_000.0, 0.7
    bound = bound_before_rounding(clip, dimension, scale)
    update = np.random.default_rng(1).normal(size=dimension).astype(np.float32)
    assert l2_clip(update, bound)
    steps = update.astype(np.float64) * scale
    worst = steps + np.sign(steps)
    assert float(np.linalg.norm(worst)) <= clip * scale
    assert bound > 0.99 * clip - math.sqrt(dimension) / scale


# -- the distribution


def mass(sigma: int, reach: int) -> np.ndarray:
    """P(x) for x = -reach..reach under N_Z(0, sigma^2)."""
    support = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(support**2) / (2.0 * sigma * sigma))
    everything = np.arange(-20 * sigma, 20 * sigma + 1, dtype=np.float64)
    found: np.ndarray = weights / np.exp(-(everything**2) / (2.0 * sigma * sigma)).sum()
    return found


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic over the cells that are expected at least ten times, and how many those are."""
    cells = expected >= 10
    return float(((counts - expected)[cells] ** 2 / expected[cells]).sum()), int(cells.sum())


@pytest.mark.parametrize("sigma", [1, 2, 3, 7, 40])
def test_discrete_gaussian_has_the_right_distribution(sigma: int) -> None:
    """A chi-square of k cells is k +- sqrt(2 k); ten of those deviations, with a fixed seed."""
    reach = 6 * sigma
    drawn = discrete_gaussian(SEED, sigma, DRAWS)
    counts = np.bincount(np.clip(drawn, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)[1:-1]
    statistic, cells = chi_square(counts.astype(np.float64), DRAWS * mass(sigma, reach))
    assert abs(statistic - cells) < 10 * math.sqrt(2 * cells)


@pytest.mark.parametrize("wrong", [3.1, 2.9])
def test_distribution_of_another_sigma_would_be_noticed(wrong: float) -> None:
    """The test above is no formality: three per cent of sigma are a hundred deviations."""
    reach, drawn = 18, discrete_gaussian(SEED, 3, DRAWS)
    support = np.arange(-reach, reach + 1)
    weights = np.exp(-(support**2) / (2 * wrong * wrong))
    counts = np.array([(drawn == x).sum() for x in support], dtype=np.float64)
    statistic, cells = chi_square(counts, DRAWS * weights / weights.sum())
    assert abs(statistic - cells) > 50 * math.sqrt(2 * cells)


@pytest.mark.parametrize("sigma", [1000, 2**20, 2**28, SIGMA_MAX])
def test_discrete_gaussian_of_a_large_sigma_is_a_rounded_normal(sigma: int) -> None:
    """Forty cells of equal probability under the normal distribution; its difference is far below 1 / draws."""
    normal = discrete_gaussian(SEED, sigma, DRAWS) / sigma
    edges = [-math.inf, *(_quantile(at / 40) for at in range(1, 40)), math.inf]
    counts = np.histogram(normal, edges)[0].astype(np.float64)
    statistic, cells = chi_square(counts, np.full(40, DRAWS / 40))
    assert cells == 40
    assert abs(statistic - cells) < 10 * math.sqrt(2 * cells)
    assert abs(float(normal.mean())) < 6 / math.sqrt(DRAWS)


def _quantile(share: float) -> float:
    """The standard normal's quantile, by bisection."""
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + math.erf(middle / math.sqrt(2))) / 2 < share else (low, middle)
    return low


def test_low_bits_of_the_noise_are_uniform() -> None:
    """With a large sigma every residue is as likely as the others: no coordinate leaks through its last bits."""
    counts = np.bincount(discrete_gaussian(SEED, 2**28, DRAWS) % 64, minlength=64).astype(np.float64)
    statistic, cells = chi_square(counts, np.full(64, DRAWS / 64))
    assert abs(statistic - cells) < 10 * math.sqrt(2 * cells)


def test_draws_of_neighbouring_coordinates_are_independent() -> None:
    drawn = discrete_gaussian(SEED, 1000, DRAWS).astype(np.float64) / 1000
    for lag in (1, 2, 3):
        assert abs(float(np.mean(drawn[lag:] * drawn[:-lag]))) < 6 / math.sqrt(DRAWS)


def test_magnitudes_have_the_stated_statistical_distance() -> None:
    """Half the sum over k of |threshold's share - P(k)|, in exact decimals: below 2^-60."""
    getcontext().prec = 60
    masses = [(Decimal(-k * k) / 2).exp() for k in range(40)]
    exact = [part / sum(masses) for part in masses]
    limits = [0, *(int(word) for word in _THRESHOLDS), 2**64]
    ours = [Decimal(high - low) / 2**64 for low, high in pairwise(limits)]
    ours += [Decimal(0)] * (len(exact) - len(ours))
    distance = sum(abs(a - b) for a, b in zip(ours, exact, strict=True)) / 2
    assert distance < Decimal(2) ** -60


def test_uniform_numbers_have_no_bias_where_the_limit_does_not_divide() -> None:
    """With a limit of 3 2^62 a quarter of the words is drawn again; a plain remainder would favour the low third."""
    drawn = Uniforms(SEED).below(3 * 2**62, 90_000)
    counts = np.bincount((drawn >> np.uint64(62)).astype(np.int64), minlength=3).astype(np.float64)
    statistic, cells = chi_square(counts, np.full(3, 30_000.0))
    assert statistic < 60
    assert cells == 3


@pytest.mark.parametrize(("k", "u", "sigma"), [(0, 3, 7), (1, 6, 7), (4, 2**27 + 1, 2**28), (9, 1, 2)])
def test_undecided_comparisons_with_exp_are_decided_exactly(k: int, u: int, sigma: int) -> None:
    """The two words on either side of 2^64 exp(-(u/sigma) (2k + u/sigma) / 2)."""
    getcontext().prec = 80
    x = Decimal(u) / sigma
    word = int(2**64 * (-x * (2 * k + x) / 2).exp())
    assert is_below_exp(word, k, u, sigma)
    assert not is_below_exp(word + 1, k, u, sigma)


def test_nothing_is_refused_at_the_centre() -> None:
    assert is_below_exp(2**64 - 1, 3, 0, 5)


def test_noise_repeats_from_its_seed_only() -> None:
    assert np.array_equal(discrete_gaussian(SEED, 9, 1000), discrete_gaussian(SEED, 9, 1000))
    assert not np.array_equal(discrete_gaussian(SEED, 9, 1000), discrete_gaussian(bytes(32), 9, 1000))
    assert not discrete_gaussian(SEED, 0, 10).any()


@pytest.mark.parametrize("sigma", [-1.0, 2 * SIGMA_MAX, float("nan"), 2.5, float("inf")])
def test_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(LocalError) as refusal:
        discrete_gaussian(SEED, sigma, 1)
    assert refusal.value.code is Code.OUT_OF_RANGE


# -- adaptive clipping


def test_clip_bit_and_update_cost_as_much_as_one_release() -> None:
    """Andrew et al. 2021, section 3: z = 1 with sigma_b = 5 (100 clients) makes the update's multiplier 1.00504."""
    assert vector_multiplier(1.0, 5.0) == pytest.approx(1.0050378, rel=1e-6)
    both = vector_multiplier(1.0, 5.0) ** -2 + (2 * 5.0) ** -2
    assert both**-0.5 == pytest.approx(1.0, rel=1e-12)


def test_clip_follows_the_quantile_geometrically() -> None:
    """C exp(-0.2 (b - 0.5)): up by exp(0.1) when all were clipped, down by exp(-0.1) when none was."""
    assert next_clip(2.0, 1.0, 0.5, 0.2) == pytest.approx(2.0 * math.exp(0.1))
    assert next_clip(2.0, 0.0, 0.5, 0.2) == pytest.approx(2.0 * math.exp(-0.1))
    assert next_clip(2.0, 0.5, 0.5, 0.2) == pytest.approx(2.0)
    assert next_clip(2.0, 7.0, 0.5, 0.2) == next_clip(2.0, 1.0, 0.5, 0.2)  # the noise may say more than all


def test_adaptive_clip_finds_the_median_of_the_norms() -> None:
    norms = np.random.default_rng(4).lognormal(0.0, 0.5, 200)
    clip = 0.05
    for _ in range(200):
        clip = next_clip(clip, float((norms > clip).mean()), 0.5, 0.2)
    assert clip == pytest.approx(float(np.median(norms)), rel=0.05)
