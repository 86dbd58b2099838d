"""*Pure.* An update as words of the ring Z_2^w, and a sum of such words as a mean again.

The client encodes, the aggregator plans and decodes. Vector layout, in words of w bits, little-endian:

    coordinates [dimension]  round(clip(x, +-C) * omega * S), stochastically, two's complement
    weight      [1]          round(omega * S_w); absent when `uniform`
    extras      [...]        round(clip(value, 0, bound) / bound * omega * S_w), one each

omega = min(examples, W_max) / W_max, or 1 when `uniform`. So every sum decodes to a weighted mean, and it is
exact: nothing wraps as long as the overflow rule (`check`) holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.crypto import Label, Prg, digest, stream
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.privacy import discrete_gaussian, l2_clip
from fedless.protocol.secagg.codec import f64

WORD_BITS = (16, 32)
SIGMAS = 8
"""Head-room for noise: so many standard deviations of the sum's noise."""
_BLOCK = 65_536


@dataclass(frozen=True)
class Extra:
    """One further coordinate: a number per client in [0, bound], such as its mean loss."""

    name: str
    bound: float


@dataclass(frozen=True)
class RingEncoding:
    """How updates become ring words; the same for every member, bound into the context.

    `dimension` P (0: an evaluation, extras only), `bits` w, `clip` C per coordinate, `scale` S,
    `weight_scale` S_w, `max_examples` W_max, `l2_clip` C2 (0: off), `uniform`: every client weighs 1 (always
    under differential privacy), `member_sigma`: standard deviation, in ring steps, of the discrete Gaussian
    noise that each member adds (0: none), `helper_sigma`: that the helper adds, `sum_sigma`: of all noise in
    the sum, wherever it is added.
    """

    dimension: int
    bits: int
    clip: float
    scale: int
    weight_scale: int
    max_examples: int
    l2_clip: float = 0.0
    uniform: bool = False
    member_sigma: float = 0.0
    helper_sigma: float = 0.0
    sum_sigma: float = 0.0
    extras: tuple[Extra, ...] = ()

    @property
    def words(self) -> int:
        """Length of the encoded vector."""
        return self.dimension + (0 if self.uniform else 1) + len(self.extras)

    @property
    def report_bytes(self) -> int:
        """Bytes of a masked report."""
        return self.words * self.bits // 8

    @property
    def hash(self) -> bytes:
        """H("encoding", every field), 32 bytes."""
        return digest(
            Label.ENCODING,
            self.dimension,
            self.bits,
            f64(self.clip),
            self.scale,
            self.weight_scale,
            self.max_examples,
            f64(self.l2_clip),
            int(self.uniform),
            f64(self.member_sigma),
            f64(self.helper_sigma),
            f64(self.sum_sigma),
            [(extra.name, f64(extra.bound)) for extra in self.extras],
        )


def plan(  # noqa: PLR0913 - the fields of an encoding
    *,
    n: int,
    dimension: int,
    bits: int = 32,
    clip: float,
    max_examples: int,
    l2_clip: float = 0.0,
    extras: tuple[Extra, ...] = (),
    sum_noise: float = 0.0,
    member_noise: float = 0.0,
    helper_noise: float = 0.0,
) -> RingEncoding:
    """The aggregator: the finest encoding in which the sum over `n` members cannot overflow.

    S = floor((floor(M/n) - 1) / C) with M = 2^(w-1) - 1, and S_w = floor((2^w - 1) / n). With noise, given as
    standard deviations in the update's unit, S = floor((M - 2n) / (n C + 8 sum_noise)) and weights are equal.
    Raises `LocalError(RING_OVERFLOW)` with an explanation when less than one step is left.
    """
    if n < 1 or bits not in WORD_BITS or not (math.isfinite(clip) and clip > 0) or max_examples < 1:
        raise LocalError(
            Code.OUT_OF_RANGE, "Expected n >= 1, 16 or 32 bits, a clip above 0 and max_examples >= 1."
        )
    half = _half(bits)
    scale = math.floor((half // n - 1) / clip)
    if sum_noise:
        scale = math.floor((half - 2 * n) / (n * clip + SIGMAS * sum_noise))
    weight_scale = (2**bits - 1) // n
    if scale < 1 or weight_scale < 1:
        raise LocalError(
            Code.RING_OVERFLOW,
            f"{n} clients with coordinates up to {clip:g} leave less than one step of a {bits}-bit ring.",
            fix="Use 32 bits, a smaller cohort or a smaller clip.",
        )
    planned = RingEncoding(
        dimension=dimension,
        bits=bits,
        clip=clip,
        scale=scale,
        weight_scale=weight_scale,
        max_examples=max_examples,
        l2_clip=l2_clip,
        uniform=sum_noise > 0,
        member_sigma=member_noise * scale,
        helper_sigma=helper_noise * scale,
        sum_sigma=sum_noise * scale,
        extras=extras,
    )
    check(planned, n)
    return planned


def check(encoding: RingEncoding, n: int) -> None:
    """Both sides: raise `PeerError(RING_OVERFLOW)` if the sum over `n` members might wrap around.

    The overflow rule: n (ceil(C S) + 1) + 8 sigma <= M, and n S_w <= 2^w - 1.
    """
    if encoding.bits not in WORD_BITS or encoding.scale < 1 or encoding.max_examples < 1:
        raise PeerError(Code.RING_OVERFLOW, "Expected 16 or 32 bits, a scale and max_examples of 1 or more.")
    if not all(math.isfinite(x) and x >= 0 for x in _floats(encoding)) or encoding.clip == 0:
        raise PeerError(Code.RING_OVERFLOW, "Expected finite bounds: clip above 0, the others 0 or more.")
    if encoding.sum_sigma < max(encoding.member_sigma, encoding.helper_sigma):
        raise PeerError(Code.RING_OVERFLOW, "Expected a noise of the sum at least as large as one party's.")
    needed, half = _bound(encoding, n), _half(encoding.bits)
    if needed > half:
        raise PeerError(
            Code.RING_OVERFLOW,
            f"{n} clients x {encoding.clip:g} x scale {encoding.scale} (and noise) may reach {needed:.0f}; "
            f"a ring of {encoding.bits} bits holds {half}.",
            fix=f"With {n} clients the scale may be at most {math.floor((half // n - 1) / encoding.clip)}.",
        )
    if n * encoding.weight_scale > 2**encoding.bits - 1:
        raise PeerError(Code.RING_OVERFLOW, f"{n} weights of {encoding.weight_scale} do not fit in the ring.")
    if encoding.sum_sigma and not encoding.uniform:
        raise PeerError(
            Code.RING_OVERFLOW, "Noise needs uniform weights: a weight would be sent without noise."
        )
    if encoding.sum_sigma and encoding.extras:
        raise PeerError(Code.RING_OVERFLOW, "Under noise no further coordinate may be sent without its own.")


def _floats(encoding: RingEncoding) -> tuple[float, ...]:
    return (
        encoding.clip,
        encoding.l2_clip,
        encoding.member_sigma,
        encoding.helper_sigma,
        encoding.sum_sigma,
        *(extra.bound for extra in encoding.extras),
    )


def _half(bits: int) -> int:
    """M, the largest positive number of the ring."""
    return (1 << (bits - 1)) - 1


def _bound(encoding: RingEncoding, n: int) -> float:
    """What the absolute value of a coordinate of the sum over `n` members cannot exceed."""
    return n * (math.ceil(encoding.clip * encoding.scale) + 1) + SIGMAS * encoding.sum_sigma


# -- the client --------------------------------------------------------------------------------


def encode(
    encoding: RingEncoding,
    update: NDArray[np.float32],
    examples: int,
    extras: Mapping[str, float],
    seed: bytes,
) -> Words:
    """The client's update (float32 [dimension], scaled in place by the L2 clip) as ring words [words].

    `seed`: 32 fresh random bytes, for the stochastic rounding and this member's noise; never used again.
    Raises `LocalError` `WRONG_LENGTH`, `NOT_FINITE` or `EXAMPLE_COUNT`.
    """
    if update.shape != (encoding.dimension,):
        raise LocalError(
            Code.WRONG_LENGTH, f"Expected {encoding.dimension} parameters, found shape {update.shape}."
        )
    if examples < 1:
        raise LocalError(Code.EXAMPLE_COUNT, f"Expected one example or more, found {examples}.")
    if encoding.l2_clip:
        l2_clip(update, encoding.l2_clip)
    omega = 1.0 if encoding.uniform else min(examples, encoding.max_examples) / encoding.max_examples
    words: Words = np.empty(encoding.words, dtype=word_dtype(encoding.bits))
    _encode_coordinates(encoding, update, omega, seed, words)
    words[encoding.dimension :] = _further(encoding, omega, extras)
    return words


def _encode_coordinates(
    encoding: RingEncoding, update: NDArray[np.float32], omega: float, seed: bytes, words: Words
) -> None:
    """floor(v + u) with u uniform in [0, 1) is floor(v) + Bernoulli(frac(v)); in blocks, to stay small."""
    uniforms = stream(Prg.AES, seed)
    for at in range(0, encoding.dimension, _BLOCK):
        x = update[at : at + _BLOCK].astype(np.float64)
        if not np.isfinite(x).all():
            raise LocalError(Code.NOT_FINITE, "The update holds a number that is not finite.")
        u = np.frombuffer(uniforms.update(bytes(4 * len(x))), dtype="<u4") * 2.0**-32
        v = np.clip(x, -encoding.clip, encoding.clip) * (omega * encoding.scale)
        words[at : at + len(x)] = np.floor(v + u).astype(np.int64).astype(words.dtype)
    if encoding.member_sigma:
        noise_seed = uniforms.update(bytes(32))
        noise = discrete_gaussian(noise_seed, encoding.member_sigma, encoding.dimension)
        words[: encoding.dimension] += noise.astype(words.dtype)


def _further(encoding: RingEncoding, omega: float, extras: Mapping[str, float]) -> list[int]:
    """The weight and the extra coordinates as integers in [0, S_w]."""
    values = [] if encoding.uniform else [round(omega * encoding.weight_scale)]
    for extra in encoding.extras:
        value = extras.get(extra.name, math.nan)
        if not math.isfinite(value):
            raise LocalError(Code.NOT_FINITE, f"Expected a finite number for {extra.name!r}.")
        share = min(max(value, 0.0), extra.bound) / extra.bound if extra.bound else 0.0
        values.append(round(share * omega * encoding.weight_scale))
    return values


# -- the aggregator ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """What a sum says.

    `mean`: the weighted mean update, float32 [dimension]. `weight`: the sum of weights in units of W_max
    examples (the number of survivors when uniform). `extras`: the weighted mean of every extra.
    """

    mean: NDArray[np.float32]
    weight: float
    extras: Mapping[str, float]


def decode(encoding: RingEncoding, total: Words, survivors: int) -> Decoded:
    """The unmasked sum [words] over `survivors` members as a mean.

    Raises `PeerError(OUT_OF_RANGE)` if a coordinate is larger than `survivors` honest members can make it
    (masks that did not cancel, or a cheat), and if no weight is left.
    """
    signed = total[: encoding.dimension].view(f"<i{encoding.bits // 8}")
    limit = _bound(encoding, survivors)
    if len(signed) and max(int(signed.max()), -int(signed.min())) > limit:
        raise PeerError(Code.OUT_OF_RANGE, f"A coordinate of the sum exceeds {limit:.0f}.")
    further = [int(word) for word in total[encoding.dimension :]]
    if any(word > survivors * encoding.weight_scale for word in further):
        raise PeerError(Code.OUT_OF_RANGE, "The sum of weights exceeds what the survivors can have.")
    weight = float(survivors) if encoding.uniform else further.pop(0) / encoding.weight_scale
    if weight == 0:
        raise PeerError(Code.OUT_OF_RANGE, "The survivors' weights add up to nothing.")
    mean = np.empty(encoding.dimension, dtype=np.float32)
    np.divide(signed, encoding.scale * weight, out=mean, casting="unsafe")
    extras = {
        extra.name: word / encoding.weight_scale * extra.bound / weight
        for extra, word in zip(encoding.extras, further, strict=True)
    }
    return Decoded(mean=mean, weight=weight, extras=extras)
