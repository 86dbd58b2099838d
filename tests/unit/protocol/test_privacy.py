"""Clipping and the discrete Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedless.protocol.errors import Code, LocalError
from fedless.protocol.privacy import SIGMA_MAX, discrete_gaussian, l2_clip

SEED = bytes(range(32))


def test_l2_clip_leaves_a_short_update_alone() -> None:
    update = np.array([0.3, 0.4], dtype=np.float32)
    assert l2_clip(update, 1.0) is False
    assert update.tolist() == pytest.approx([0.3, 0.4])
    assert l2_clip(update, 0.25) is True
    assert float(np.linalg.norm(update)) == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7, 1000.5])
def test_discrete_gaussian_has_the_exact_moments(sigma: float) -> None:
    drawn = discrete_gaussian(SEED, sigma, 200_000)
    support = np.arange(-math.ceil(12 * sigma), math.ceil(12 * sigma) + 1, dtype=np.float64)
    mass = np.exp(-(support**2) / (2 * sigma * sigma))
    expected = math.sqrt(float((mass * support**2).sum() / mass.sum()))
    assert float(drawn.std()) == pytest.approx(expected, rel=0.01)
    assert abs(float(drawn.mean())) < 5 * expected / math.sqrt(len(drawn))
    assert float((drawn == 0).mean()) == pytest.approx(1 / float(mass.sum()), abs=0.005)


def test_noise_repeats_from_its_seed_only() -> None:
    assert np.array_equal(discrete_gaussian(SEED, 9.0, 1000), discrete_gaussian(SEED, 9.0, 1000))
    assert not np.array_equal(discrete_gaussian(SEED, 9.0, 1000), discrete_gaussian(bytes(32), 9.0, 1000))
    assert not discrete_gaussian(SEED, 0.0, 10).any()


@pytest.mark.parametrize("sigma", [-1.0, 2 * SIGMA_MAX, float("nan")])
def test_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(LocalError) as refusal:
        discrete_gaussian(SEED, sigma, 1)
    assert refusal.value.code is Code.OUT_OF_RANGE
