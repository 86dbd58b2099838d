"""*Pure.* Differential privacy of one round: how much noise, where, in which encoding; and what one release costs.

Called by the drivers of rounds. `Noise` is fixed when the round opens and kept with its terms. The cost of a release
is its spend, z^-2: releases of the Gaussian mechanism compose to one with z^-2 the sum of theirs (Mironov 2017,
corollary 3), so a client's ledger is a sum. What it says as epsilon is `ledger.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from fedless.protocol.messages import ClientRule, Mode
from fedless.protocol.privacy import discrete_gaussian, next_clip, vector_multiplier
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.epochs import honest_survivors
from fedless.protocol.secagg.ring import CLIPPED, Extra, RingEncoding

BIT_NOISE = 0.05
"""sigma_b over the number of clients (Andrew et al. 2021, section 3)."""
SUM_BITS, SIGMA_BITS = 50, 36
"""Of a sum in the clear: its largest value and its noise in steps, so that binary64 holds every number exactly."""
EPSILON, EPSILON_PLD = "epsilon", "epsilon_pld"
NOISE, CLIP, CLIPPED_SHARE = "noise_multiplier", "update_clip", "clipped"
"""What the figures of a private round are called."""


class Place(StrEnum):
    """Where the noise is added, that is, who is trusted with what has none yet."""

    SERVER = "server"
    HELPER = "helper"
    DISTRIBUTED = "distributed"
    LOCAL = "local"


class Unit(StrEnum):
    """What is protected: all that one client has, or one example of it."""

    CLIENT = "client"
    EXAMPLE = "example"


@dataclass(frozen=True)
class Noise:
    """The noise of one round.

    `multiplier` z: the standard deviation of all noise over the sensitivity, the clip bit included. `clip`: the L2
    norm of an update (of one example's gradient with local noise) at most. `adaptive`: clients also tell, under
    noise, whether they were clipped; `bit_sigma` is the standard deviation of the noise in the sum of those bits.
    `releases`: how often one example's gradient enters a released sum (local noise).
    """

    place: Place
    multiplier: float
    clip: float
    adaptive: bool = False
    bit_sigma: float = 0.0
    releases: int = 1

    @property
    def unit(self) -> Unit:
        """What it protects."""
        return Unit.EXAMPLE if self.place is Place.LOCAL else Unit.CLIENT

    @property
    def spend(self) -> float:
        """What one round costs: releases / z^2."""
        return self.releases / self.multiplier**2

    def sized(self, clients: int) -> Noise:
        """For a round of this many clients: sigma_b is a twentieth of them, and never under z.

        In a small cohort the twentieth would take the whole budget for the bit; with z it takes a quarter.
        """
        if not self.adaptive:
            return self
        return replace(self, bit_sigma=max(BIT_NOISE * clients, self.multiplier))

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise in each coordinate of the sum, in the update's unit."""
        if not self.bit_sigma:
            return self.multiplier * self.clip
        return vector_multiplier(self.multiplier, self.bit_sigma) * self.clip

    @property
    def bit_bound(self) -> float:
        """How large the clip bit is as a coordinate, so that noise of `deviation` is `bit_sigma` bits."""
        return self.deviation / self.bit_sigma

    def next_clip(self, clipped: float, quantile: float, rate: float) -> float:
        """The clip of the next round, after a noised share `clipped` of the clients was clipped."""
        return next_clip(self.clip, clipped, quantile, rate) if self.adaptive else self.clip


def with_local_noise(rule: ClientRule, clip: float, multiplier: float) -> ClientRule:
    """The client's rule under local noise: DP-SGD (Abadi et al. 2016) in each of its steps."""
    return replace(rule, example_clip=clip, example_noise=multiplier)


def releases(rule: ClientRule) -> int:
    """How many noised sums one example is in at most, in one round: one for each local epoch that it is part of.

    Batches of an epoch are disjoint, so an example is in one of them (parallel composition). No amplification by
    sampling is claimed: the order of the examples is a permutation, not a Poisson sample.
    """
    return min(rule.local_epochs, rule.max_steps) if rule.max_steps else rule.local_epochs


# -- masked sums


def encoding(noise: Noise, *, members: int, least: int, dimension: int, bits: int) -> RingEncoding:
    """How members' updates become ring words in a round with this noise (`Noise.sized`), which is in every word.

    `members` may report, at least `least` of them are in every sum that is opened. Raises `LocalError`
    RING_OVERFLOW. With distributed noise each member adds the variance deviation^2 / m, m the survivors that surely
    do not collude; so more survivors mean more noise than is accounted for, never less.
    """
    shares: dict[str, float] = {"sum_noise": noise.deviation}
    if noise.place is Place.HELPER:
        shares["helper_noise"] = noise.deviation
    elif noise.place is Place.DISTRIBUTED:
        shares["member_noise"] = noise.deviation / math.sqrt(max(1, honest_survivors(least, members)))
        shares["sum_noise"] = shares["member_noise"] * math.sqrt(members)
    return ring.plan(
        n=members,
        dimension=dimension,
        bits=bits,
        clip=noise.clip,
        l2_clip=noise.clip,
        max_examples=1,
        extras=(Extra(CLIPPED, noise.bit_bound),) if noise.adaptive else (),
        **shares,
    )


def clipped_share(noise: Noise, extras: Mapping[str, float]) -> float | None:
    """The noised share of clients whose update was clipped, from the means beside a sum; None if nobody told."""
    found = extras.get(CLIPPED)
    return None if found is None or not noise.bit_sigma else found / noise.bit_bound


# -- sums in the clear


def steps_per_unit(noise: Noise, clients: int) -> float:
    """S of a sum of `clients` updates in the clear, a power of two: sums of rounded updates are exact in binary64."""
    room = min(2**SUM_BITS / (clients * noise.clip), 2**SIGMA_BITS / noise.deviation)
    return 2.0 ** math.floor(math.log2(room))


def noised_mean(
    noise: Noise, total: npt.NDArray[np.float64], clipped: int, reports: int, *, steps: float, seed: bytes
) -> tuple[npt.NDArray[np.float32], float | None]:
    """The mean of `reports` clipped updates with the aggregator's noise, and the noised share of clipped ones.

    `total` float64[P]: their sum in whole steps, `steps` to the unit; changed in place. `seed`: 32 random bytes.
    """
    drawn = discrete_gaussian(seed, math.ceil(noise.deviation * steps), len(total) + 1)
    total += drawn[:-1]
    mean = (total / (steps * reports)).astype(np.float32)
    if not noise.bit_sigma:
        return mean, None
    half = math.floor(noise.bit_bound * steps / 2)
    bits = half * (2 * clipped - reports) + int(drawn[-1])
    return mean, bits / (2 * half * reports) + 0.5


# -- what does not go together


def complaints(place: Place, mode: Mode, *, adaptive: bool) -> Iterator[str]:
    """Why noise cannot be added there in rounds of this mode; nothing: it can."""
    if place is Place.DISTRIBUTED and mode is not Mode.PAIRWISE:
        yield "privacy.noise distributed: expected mode pairwise, whose members know how many of them add noise"
    if place is Place.HELPER and mode is not Mode.HELPER:
        yield "privacy.noise helper: expected mode helper"
    if place is Place.LOCAL and adaptive:
        yield "privacy.adaptive: expected false with local noise, which clips single gradients"
