"""Known answers of the accounting, composition, budgets, and the encodings that noise asks for."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from aggregator import ledger, tasks
from aggregator.privacy import (
    Noise,
    Place,
    Unit,
    clipped_share,
    encoding,
    noised_mean,
    releases,
    steps_per_unit,
)
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import ClientRule
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.ring import CLIPPED

# protocol.md, section 8: (q, z, T, delta): epsilon by Renyi accounting, by privacy loss distributions.
KNOWN = [
    (1.0, 5.0, 100, 1e-5, 10.725510, 9.997256),
    (0.1, 1.0, 100, 1e-5, 7.903850, 7.046603),
    (0.01, 4.0, 10_000, 1e-5, 1.035490, 0.946999),
    (1.0, 1.0, 1, 1e-5, 4.728507, 4.377178),
]


@pytest.mark.parametrize(("q", "z", "times", "delta", "renyi", "loss"), KNOWN)
def test_epsilon_is_the_known_answer(
    q: float, z: float, times: int, delta: float, renyi: float, loss: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dp-accounting: orders that do not converge are left out
        assert ledger.epsilon(q, z, times, delta) == pytest.approx(renyi, abs=2e-6)
        assert ledger.epsilon(q, z, times, delta, tight=True) == pytest.approx(loss, abs=2e-6)


def test_a_sum_of_spends_is_the_composition_of_its_rounds() -> None:
    """A hundred rounds with z = 5 are one with z = 0.5; rounds of different noise add up alike."""
    assert ledger.epsilon_of(100 / 25, 1e-5) == pytest.approx(ledger.epsilon(1.0, 5.0, 100, 1e-5), abs=1e-9)
    assert ledger.tighter_epsilon_of(100 / 25, 1e-5) == pytest.approx(9.997256, abs=2e-6)
    assert ledger.epsilon_after(60, 5.0, 1e-5, spent=40 / 25) == pytest.approx(10.725510, abs=2e-6)
    assert ledger.epsilon_of(0.0, 1e-5) == 0.0
    assert ledger.tighter_epsilon_of(0.0, 1e-5) is None
    assert ledger.tighter_epsilon_of(1e4, 1e-5) is None


@pytest.mark.parametrize("budget", [0.5, 8.0, 50.0])
def test_largest_spend_is_just_within_the_budget(budget: float) -> None:
    spend = ledger.largest_spend(budget, 1e-5)
    assert ledger.epsilon_of(spend, 1e-5) <= budget
    assert ledger.epsilon_of(spend * 1.0001, 1e-5) > budget


TASK = """
name = "a-task"
function = "a.bundle"
rounds = 20
[cohort]
size = 10
[privacy]
noise = "distributed"
multiplier = 2.0
clip = 0.5
"""


def test_run_is_foreseen_to_end_at_its_budget() -> None:
    """With z = 2 epsilon is 10.0 between the 14th and the 15th round."""
    free = ledger.foreseen(tasks.parse(TASK))
    assert free.rounds == 20
    assert free.epsilon == pytest.approx(ledger.epsilon_after(20, 2.0, 1e-5))
    bounded = ledger.foreseen(tasks.parse(f"{TASK}\nepsilon = 10.0"))
    assert bounded.rounds == 14
    assert bounded.epsilon < 10.0 < ledger.epsilon_after(15, 2.0, 1e-5)
    exact = ledger.foreseen(tasks.parse(f"{TASK}\nepsilon = {ledger.epsilon_after(3, 2.0, 1e-5)}"))
    assert exact.rounds == 3


def test_releases_of_local_training_are_its_passes_over_the_data() -> None:
    assert releases(ClientRule(local_epochs=5)) == 5
    assert releases(ClientRule(local_epochs=5, max_steps=3)) == 3
    assert releases(ClientRule(local_epochs=5, max_steps=300)) == 5
    noise = Noise(Place.LOCAL, 2.0, 1.0, releases=5)
    assert (noise.spend, noise.unit) == (1.25, Unit.EXAMPLE)
    assert Noise(Place.SERVER, 2.0, 1.0).unit is Unit.CLIENT


# -- encodings


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("place", [Place.SERVER, Place.HELPER, Place.DISTRIBUTED])
@pytest.mark.parametrize(("members", "least"), [(8, 6), (20, 14), (100, 70)])
def test_encoding_has_at_least_the_noise_that_the_round_is_charged_for(
    place: Place, members: int, least: int, *, adaptive: bool
) -> None:
    noise = Noise(place, 1.5, 0.3, adaptive).sized(members)
    found = encoding(noise, members=members, least=least, dimension=10_000, bits=32)
    ring.check(found, members)
    honest = least - (members // 10 if members >= 10 else 0)
    seen = math.sqrt(found.server_sigma**2 + found.helper_sigma**2 + honest * found.member_sigma**2)
    assert seen / found.sensitivity >= noise.multiplier * (1 - 1e-9)
    assert seen / found.sensitivity < noise.multiplier * 1.001
    assert found.scale >= 2**16
    assert [extra.name for extra in found.extras] == ([CLIPPED] if adaptive else [])


def test_words_of_16_bits_are_refused_where_rounding_would_take_the_clip() -> None:
    noise = Noise(Place.SERVER, 1.0, 0.3)
    with pytest.raises(LocalError) as refusal:
        encoding(noise, members=100, least=70, dimension=100_000, bits=16)
    assert refusal.value.code is Code.RING_OVERFLOW


def test_bit_of_a_small_cohort_takes_a_quarter_of_the_budget_at_most() -> None:
    """A twentieth of 8 clients would be less noise than z itself; z is the least that is given to the bit."""
    noise = Noise(Place.SERVER, 1.0, 1.0, adaptive=True)
    assert noise.sized(8).bit_sigma == 1.0
    assert noise.sized(8).deviation == pytest.approx(1 / math.sqrt(0.75))
    assert noise.sized(1000).bit_sigma == 50.0
    assert noise.sized(1000).deviation == pytest.approx(1.0, abs=1e-4)


def test_share_of_the_clipped_comes_back_from_the_coordinate() -> None:
    noise = Noise(Place.SERVER, 1.0, 1.0, adaptive=True).sized(8)
    assert clipped_share(noise, {CLIPPED: 0.25 * noise.bit_bound}) == pytest.approx(0.25)
    assert clipped_share(noise, {}) is None
    assert clipped_share(Noise(Place.SERVER, 1.0, 1.0), {"loss": 1.0}) is None


# -- sums in the clear


def test_mean_in_the_clear_gets_the_noise_of_its_multiplier() -> None:
    noise = Noise(Place.SERVER, 2.0, 0.5, adaptive=True).sized(10)
    steps = steps_per_unit(noise, 10)
    mean, share = noised_mean(noise, np.zeros(40_000), 4, 10, steps=steps, seed=bytes(32))
    assert float(mean.std()) * 10 == pytest.approx(noise.deviation, rel=0.03)
    assert share is not None
    assert share != 0.4
    assert abs(share - 0.4) < 8 * noise.bit_sigma / 10


def test_mean_without_much_noise_is_the_mean() -> None:
    noise = Noise(Place.SERVER, 1e-6, 0.5)
    steps = steps_per_unit(noise, 4)
    total = np.rint(np.array([1.0, -2.0]) * steps)
    mean, share = noised_mean(noise, total, 0, 4, steps=steps, seed=bytes(32))
    assert mean.tolist() == pytest.approx([0.25, -0.5], abs=1e-5)
    assert share is None
