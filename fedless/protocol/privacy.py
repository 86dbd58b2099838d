"""*Pure.* Clipping and discrete noise, in numpy: what differential privacy asks of one party.

The client clips and, with distributed noise, adds its part; the helper or the aggregator adds all of it where
the task places the noise there. Randomness is a 32-byte seed from the OS's CSPRNG, expanded with AES-256-CTR:
numpy's own generators are not cryptographic, and floating-point noise gives itself away in its last bits
(Mironov 2012), so noise is a whole number of ring steps.

The discrete Gaussian of a whole sigma t (Canonne, Kamath and Steinke 2020, definition 1: P(x) proportional to
exp(-x^2 / 2 t^2) over the integers) is drawn as Karney 2016 draws a normal: a magnitude t k + u with k from
P(k) proportional to exp(-k^2 / 2) and u uniform in 0..t-1, accepted with probability
exp(-(u/t) (2k + u/t) / 2), with a random sign. Statistical distance of one draw from the exact distribution:
below 2^-60. It comes from the table of k alone (64-bit thresholds); u and the sign are uniform without bias
(rejection), and the comparison with exp is exact: what 53 bits leave undecided is decided with 50 digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.crypto import Prg, stream
from fedless.protocol.errors import Code, LocalError

_BLOCK = 32_768
_SPARE = 1.6
"""Candidates for each draw that is wanted, so that a small model's noise is one block: 0.71 of them are accepted."""
SIGMA_MAX = 2**40
"""In ring steps. No sum of a ring of 32 bits has room for more than 2^28."""
FLOAT_MARGIN = 2.0**-20
"""What scaling in float32 may add to a norm, as a part of it: 2^-24 for each coordinate, and a reserve."""
_DIGITS = Context(prec=50)
_UNDECIDED = 2.0**-48
"""exp in binary64 is nearer than this to the true value: its argument is at most 10, with an error below 2^-50."""
_LARGEST = 10


def l2_clip(update: NDArray[np.float32], bound: float) -> bool:
    """Scale `update` (float32 [d]) in place to an L2 norm of at most `bound`; whether it was longer.

    Raises `LocalError(NOT_FINITE)` for an update that holds NaN or infinite numbers.
    """
    norm = l2_norm(update)
    if norm <= bound:
        return False
    np.multiply(update, np.float32(bound / norm), out=update)
    return True


def l2_norm(update: NDArray[np.float32]) -> float:
    """The norm of `update` (float32 [d]), summed in binary64. Raises `LocalError(NOT_FINITE)`."""
    wide = update.astype(np.float64)
    norm = math.sqrt(float(np.dot(wide, wide)))
    if not math.isfinite(norm):
        raise LocalError(Code.NOT_FINITE, "The update holds a number that is not finite.")
    return norm


def bound_before_rounding(bound: float, dimension: int, scale: float) -> float:
    """To which norm an update is clipped so that it is within `bound` also when it is rounded.

    Rounding moves each of `dimension` coordinates by less than one step, 1 / `scale`, and so the vector by less
    than sqrt(dimension) steps (the worst case of Kairouz, Liu and Steinke 2021, section 4.1; no rounding has to be
    tried again then). Negative where the steps are too coarse.
    """
    return (bound - math.sqrt(dimension) / scale) * (1.0 - FLOAT_MARGIN)


def vector_multiplier(multiplier: float, bit_sigma: float) -> float:
    """The noise multiplier of the update when the clip bit is released beside it (Andrew et al. 2021, section 3).

    z_D = (z^-2 - (2 sigma_b)^-2)^-1/2: both together cost as much as one release with `multiplier` z. `bit_sigma`:
    the standard deviation of the noise in the sum of bits, above z / 2.
    """
    return 1.0 / math.sqrt(multiplier**-2 - (2 * bit_sigma) ** -2)


def next_clip(clip: float, clipped: float, quantile: float, rate: float) -> float:
    """C <- C exp(-rate (share within C - quantile)), Andrew et al. 2021, equation 1.

    `clipped`: the noised share of clients whose update was longer than `clip`, brought into [0, 1].
    """
    within = 1.0 - min(max(clipped, 0.0), 1.0)
    return clip * math.exp(-rate * (within - quantile))


# -- noise -------------------------------------------------------------------------------------


class Uniforms:
    """A CSPRNG stream of uniform 64-bit words, from one 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self._stream = stream(Prg.AES, seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of 64 uniform bits."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def below(self, limit: int, count: int) -> NDArray[np.uint64]:
        """`count` numbers, each uniform in 0..`limit`-1; words beyond the last multiple are drawn again."""
        drawn = self.words(count)
        last = np.uint64(2**64 - 2**64 % limit - 1)
        while (beyond := drawn > last).any():
            drawn = drawn.copy()
            drawn[beyond] = self.words(int(beyond.sum()))
        return drawn % np.uint64(limit)


def discrete_gaussian(seed: bytes, sigma: float, size: int) -> NDArray[np.int64]:
    """`size` draws from the discrete Gaussian N_Z(0, sigma^2), int64.

    `sigma`: a whole number of ring steps, 0 to `SIGMA_MAX`. Raises `LocalError(OUT_OF_RANGE)` for another.
    """
    if not (0 <= sigma <= SIGMA_MAX and sigma == int(sigma)):
        detail = f"Expected a sigma that is a whole number of ring steps, 0 to {SIGMA_MAX}, found {sigma}."
        raise LocalError(Code.OUT_OF_RANGE, detail)
    out = np.zeros(size, dtype=np.int64)
    if sigma == 0:
        return out
    filled = 0
    block_size = min(_BLOCK, math.ceil(_SPARE * size) + 64)
    for block in _accepted(Uniforms(seed), int(sigma), block_size):
        part = block[: size - filled]
        out[filled : filled + len(part)] = part
        filled += len(part)
        if filled == size:
            break
    return out


def _accepted(uniforms: Uniforms, sigma: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Endless blocks of what is accepted of `count` candidates each: about 0.71 of them."""
    while True:
        k = np.searchsorted(_THRESHOLDS, uniforms.words(count), side="right").astype(np.int64)
        signed = uniforms.below(2 * sigma, count).astype(np.int64)
        u = signed % sigma
        kept = _accept(uniforms.words(count), k, u, sigma)
        magnitude = k * sigma + u
        negative = signed >= sigma
        kept &= ~(negative & (magnitude == 0))  # zero would count twice
        yield np.where(negative, -magnitude, magnitude)[kept]


def _accept(
    words: NDArray[np.uint64], k: NDArray[np.int64], u: NDArray[np.int64], sigma: int
) -> NDArray[np.bool_]:
    """Whether each word / 2^64 is below exp(-(u/sigma) (2k + u/sigma) / 2), decided exactly."""
    x = u / sigma
    chance = np.exp(-x * (2 * k + x) / 2)
    fraction = words * 2.0**-64
    accepted: NDArray[np.bool_] = fraction < chance
    for at in np.flatnonzero(np.abs(fraction - chance) < _UNDECIDED):
        accepted[at] = is_below_exp(int(words[at]), int(k[at]), int(u[at]), sigma)
    return accepted


def is_below_exp(word: int, k: int, u: int, sigma: int) -> bool:
    """Whether `word` / 2^64 < exp(-(u/sigma) (2k + u/sigma) / 2), with 50 decimal digits."""
    exponent = _DIGITS.divide(Decimal(u * (2 * k * sigma + u)), Decimal(2 * sigma * sigma))
    return Decimal(word) < _DIGITS.multiply(Decimal(2**64), _DIGITS.exp(-exponent))


def _thresholds() -> NDArray[np.uint64]:
    """floor(2^64 P(k <= j)) for j = 0.., where P(k) is proportional to exp(-k^2 / 2).

    A word belongs to the first k whose threshold is above it; k = 10 and beyond have 2^-74 and are left out.
    """
    mass = [_DIGITS.exp(Decimal(-k * k) / 2) for k in range(_LARGEST + 10)]
    total = sum(mass, Decimal(0))
    sums = [sum(mass[: k + 1], Decimal(0)) / total for k in range(_LARGEST - 1)]
    return np.array([int(part * 2**64) for part in sums], dtype=np.uint64)


_THRESHOLDS = _thresholds()
