"""*Pure.* Clipping and discrete noise, in numpy: what differential privacy asks of one party.

The client clips and, with distributed noise, adds its part; the helper or the aggregator adds all of it where
the task places the noise there. Randomness is a 32-byte seed from the OS's CSPRNG, expanded with AES-256-CTR:
numpy's own generators are not cryptographic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.crypto import Prg, stream
from fedless.protocol.errors import Code, LocalError

_BLOCK = 65_536
SIGMA_MAX = 2.0**40
"""Beyond it 53-bit uniforms no longer reach every integer near the centre."""


def l2_clip(update: NDArray[np.float32], bound: float) -> bool:
    """Scale `update` (float32 [d]) in place to an L2 norm of at most `bound`; whether it was longer.

    Raises `LocalError(NOT_FINITE)` for an update that holds NaN or infinite numbers.
    """
    norm = math.sqrt(float(np.dot(update.astype(np.float64), update.astype(np.float64))))
    if not math.isfinite(norm):
        raise LocalError(Code.NOT_FINITE, "The update holds a number that is not finite.")
    if norm <= bound:
        return False
    np.multiply(update, np.float32(bound / norm), out=update)
    return True


class Uniforms:
    """A CSPRNG stream of 53-bit uniforms in (0, 1), from one 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self._stream = stream(Prg.AES, seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of 64 uniform bits."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def draw(self, count: int) -> NDArray[np.float64]:
        """The next `count` uniforms: multiples of 2^-53, shifted by 2^-54 so that 0 and 1 never occur."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def discrete_gaussian(seed: bytes, sigma: float, size: int) -> NDArray[np.int64]:
    """`size` draws from the discrete Gaussian N_Z(0, sigma^2), int64.

    Rejection from the discrete Laplace (Canonne, Kamath, Steinke 2020, algorithm 3), vectorised in float64:
    exact up to the rounding of exp and log at 53 bits. Raises `LocalError` for a sigma out of its range.
    """
    if not 0 <= sigma <= SIGMA_MAX:
        raise LocalError(Code.OUT_OF_RANGE, f"Expected a sigma between 0 and {SIGMA_MAX:g} ring steps.")
    out = np.zeros(size, dtype=np.int64)
    if sigma == 0:
        return out
    filled = 0
    for block in _gaussian_blocks(Uniforms(seed), sigma):
        part = block[: size - filled]
        out[filled : filled + len(part)] = part
        filled += len(part)
        if filled == size:
            break
    return out


def _gaussian_blocks(uniforms: Uniforms, sigma: float) -> Iterator[NDArray[np.int64]]:
    """Endless blocks of accepted draws. Acceptance is about 0.76 for a large sigma."""
    scale = math.floor(sigma) + 1
    while True:
        candidate = _discrete_laplace(uniforms, scale)
        distance = np.abs(candidate).astype(np.float64) - sigma * sigma / scale
        accepted = uniforms.draw(len(candidate)) < np.exp(-distance * distance / (2 * sigma * sigma))
        yield candidate[accepted]


def _discrete_laplace(uniforms: Uniforms, scale: int) -> NDArray[np.int64]:
    """Draws with P(x) proportional to exp(-|x| / scale): a geometric magnitude and a sign."""
    magnitude = np.floor(-scale * np.log(uniforms.draw(_BLOCK))).astype(np.int64)
    negative = (uniforms.words(_BLOCK) & np.uint64(1)).astype(bool)
    kept = ~(negative & (magnitude == 0))  # zero would count twice
    magnitude[negative] *= -1
    drawn: NDArray[np.int64] = magnitude[kept]
    return drawn
