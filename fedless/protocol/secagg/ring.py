"""*Pure.* An update as words of the ring Z_2^w, and a sum of such words as a mean again.

The client encodes, the aggregator plans and decodes. Vector layout, in words of w bits, little-endian:

    coordinates [dimension]  round(clip(x, +-C) * omega * S), stochastically, two's complement
    weight      [1]          round(omega * S_w); absent when `uniform`
    extras      [...]        round(clip(value, 0, bound) / bound * omega * S_w), one each

omega = min(examples, W_max) / W_max, or 1 when `uniform`. So every sum decodes to a weighted mean, and it is
exact: nothing wraps as long as the overflow rule (`check`) holds.

Under differential privacy (`sum_sigma` above 0) every word has the same noise, of `sum_sigma` steps in the sum: weights
are equal and not sent, and an extra is one more coordinate, (clip(value, 0, bound) - bound/2) * S. So no word is ever
sent without noise, and one number says how private the sum is (`noise_multiplier`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.crypto import Label, Prg, digest, stream
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.privacy import bound_before_rounding, discrete_gaussian, l2_clip
from fedless.protocol.secagg.codec import f64

WORD_BITS = (16, 32)
SIGMAS = 8
"""Head-room for noise: so many standard deviations of the sum's noise."""
MEMBER_SIGMA_MIN = 4
"""From here on a sum of members' discrete Gaussians is as good as one: Kairouz, Liu and Steinke 2021, theorem 1, has an
excess of 10 n exp(-2 pi^2 sigma^2 / 2), under n 10^-67."""
ROUNDING_MAX = 0.05
"""Under noise: what rounding may take of the L2 clip."""
CLIPPED = "clipped"
"""The extra that says whether this client's update was longer than the L2 clip: its bound, or 0."""
_BLOCK = 65_536
Draw = Callable[[int], bytes]
"""So many further bytes of a CSPRNG stream."""


@dataclass(frozen=True)
class Extra:
    """One further coordinate: a number per client in [0, bound], such as its mean loss.

    Under noise `bound` also says how much of the noise's budget it takes: it adds (bound / 2)^2 to the square of the
    sensitivity.
    """

    name: str
    bound: float


@dataclass(frozen=True)
class RingEncoding:
    """How updates become ring words; the same for every member, bound into the context.

    `dimension` P (0: an evaluation, extras only), `bits` w, `clip` C per coordinate, `scale` S,
    `weight_scale` S_w, `max_examples` W_max, `l2_clip` C2 (0: off), `uniform`: every client weighs 1 (always
    under differential privacy), `member_sigma`: standard deviation, in whole ring steps, of the discrete Gaussian
    noise that each member adds (0: none), `helper_sigma`: that the helper adds, `sum_sigma`: of all noise in
    the sum, wherever it is added; if neither members nor the helper add any, the aggregator adds it all.
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
    def server_sigma(self) -> float:
        """Standard deviation of the noise that the aggregator adds to the opened sum, in ring steps."""
        return 0.0 if self.member_sigma or self.helper_sigma else self.sum_sigma

    @property
    def sensitivity(self) -> float:
        """How far one client can move the sum in L2 norm, in ring steps: sqrt(C2^2 + sum of (bound/2)^2) S."""
        squares = self.l2_clip**2 + sum((extra.bound / 2) ** 2 for extra in self.extras)
        return math.sqrt(squares) * self.scale

    def noise_multiplier(self, honest: int) -> float:
        """z: the noise that is surely in the sum before the aggregator sees it, over the sensitivity; 0 without.

        `honest`: how many members at least add their noise.
        """
        if not (self.uniform and self.sum_sigma and self.l2_clip):
            return 0.0
        return math.sqrt(self.helper_sigma**2 + honest * self.member_sigma**2) / self.sensitivity

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
    standard deviations in the update's unit, S = floor((M - 10 n - 16) / (n C + 8 sum_noise)) and weights are equal.
    Raises `LocalError(RING_OVERFLOW)` with an explanation when less than one step is left, or too few for the noise.
    """
    if n < 1 or bits not in WORD_BITS or not (math.isfinite(clip) and clip > 0) or max_examples < 1:
        raise LocalError(
            Code.OUT_OF_RANGE, "Expected n >= 1, 16 or 32 bits, a clip above 0 and max_examples >= 1."
        )
    half = _half(bits)
    scale = math.floor((half // n - 1) / clip)
    if sum_noise:
        scale = math.floor((half - 10 * n - 16) / (n * clip + SIGMAS * sum_noise))
    weight_scale = (2**bits - 1) // n
    if scale < 1 or weight_scale < 1:
        raise LocalError(
            Code.RING_OVERFLOW,
            f"{n} clients with coordinates up to {clip:g} leave less than one step of a {bits}-bit ring.",
            fix="Use 32 bits, a smaller cohort or a smaller clip.",
        )
    member, helper = math.ceil(member_noise * scale), math.ceil(helper_noise * scale)
    planned = RingEncoding(
        dimension=dimension,
        bits=bits,
        clip=clip,
        scale=scale,
        weight_scale=weight_scale,
        max_examples=max_examples,
        l2_clip=l2_clip,
        uniform=sum_noise > 0,
        member_sigma=float(member),
        helper_sigma=float(helper),
        sum_sigma=float(math.ceil(max(sum_noise * scale, _of_parties(member, helper, n)))),
        extras=extras,
    )
    try:
        check(planned, n)
    except PeerError as error:
        fix = "Use 32 bits, a smaller cohort or less noise." if sum_noise else error.fix
        raise LocalError(error.code, error.detail, fix=fix) from error
    return planned


def check(encoding: RingEncoding, n: int) -> None:
    """Both sides: raise `PeerError(RING_OVERFLOW)` if the sum over `n` members might wrap around.

    The overflow rule: n (ceil(C S) + 1) + 8 sigma <= M, and n S_w <= 2^w - 1. Also refused: noise that would not make
    the sum private.
    """
    if encoding.bits not in WORD_BITS or encoding.scale < 1 or encoding.max_examples < 1:
        raise PeerError(Code.RING_OVERFLOW, "Expected 16 or 32 bits, a scale and max_examples of 1 or more.")
    if not all(math.isfinite(x) and x >= 0 for x in _floats(encoding)) or encoding.clip == 0:
        raise PeerError(Code.RING_OVERFLOW, "Expected finite bounds: clip above 0, the others 0 or more.")
    if encoding.sum_sigma < _of_parties(encoding.member_sigma, encoding.helper_sigma, n):
        raise PeerError(Code.RING_OVERFLOW, "Expected a noise of the sum at least as large as all parties'.")
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
    if encoding.sum_sigma:
        _check_noise(encoding)


def _check_noise(encoding: RingEncoding) -> None:
    """What would be noise without privacy. Raises `PeerError(RING_OVERFLOW)`."""
    if not encoding.uniform:
        raise PeerError(
            Code.RING_OVERFLOW, "Noise needs uniform weights: a weight would be sent without noise."
        )
    if not encoding.l2_clip:
        raise PeerError(Code.RING_OVERFLOW, "Noise needs an L2 clip: without one it protects nobody.")
    sigmas = (encoding.member_sigma, encoding.helper_sigma, encoding.sum_sigma)
    if any(sigma != int(sigma) for sigma in sigmas) or 0 < encoding.member_sigma < MEMBER_SIGMA_MIN:
        detail = f"Expected noise of whole ring steps, {MEMBER_SIGMA_MIN} or more of each member."
        raise PeerError(Code.RING_OVERFLOW, detail)
    if any(extra.bound > 2 * encoding.clip for extra in encoding.extras):
        raise PeerError(
            Code.RING_OVERFLOW, "Expected extras no larger than coordinates: bound at most 2 C under noise."
        )
    if math.sqrt(encoding.dimension) > ROUNDING_MAX * encoding.l2_clip * encoding.scale:
        detail = (
            f"Rounding {encoding.dimension} coordinates to steps of 1/{encoding.scale} takes more than "
            f"{ROUNDING_MAX:.0%} of the L2 clip {encoding.l2_clip:g}."
        )
        raise PeerError(Code.RING_OVERFLOW, detail)


def _of_parties(member_sigma: float, helper_sigma: float, n: int) -> float:
    """The standard deviation of what `n` members and the helper add together."""
    return math.sqrt(n * member_sigma**2 + helper_sigma**2)


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
        clipped = l2_clip(update, _l2_bound(encoding))
        extras = {**extras, **{e.name: e.bound * clipped for e in encoding.extras if e.name == CLIPPED}}
    omega = 1.0 if encoding.uniform else min(examples, encoding.max_examples) / encoding.max_examples
    words: Words = np.empty(encoding.words, dtype=word_dtype(encoding.bits))
    uniforms = stream(Prg.AES, seed)

    def draw(count: int) -> bytes:
        return uniforms.update(bytes(count))

    _encode_coordinates(encoding, update, omega, draw, words)
    words[encoding.dimension :] = _further(encoding, omega, extras).astype(words.dtype)
    if encoding.member_sigma:
        words += discrete_gaussian(draw(32), encoding.member_sigma, len(words)).astype(words.dtype)
    return words


def _l2_bound(encoding: RingEncoding) -> float:
    """C2; under noise so much less that the rounded update is within C2."""
    if not encoding.sum_sigma:
        return encoding.l2_clip
    return bound_before_rounding(encoding.l2_clip, encoding.dimension, encoding.scale)


def _encode_coordinates(
    encoding: RingEncoding, update: NDArray[np.float32], omega: float, draw: Draw, words: Words
) -> None:
    """floor(v + u) with u uniform in [0, 1) is floor(v) + Bernoulli(frac(v)); in blocks, to stay small."""
    for at in range(0, encoding.dimension, _BLOCK):
        x = update[at : at + _BLOCK].astype(np.float64)
        if not np.isfinite(x).all():
            raise LocalError(Code.NOT_FINITE, "The update holds a number that is not finite.")
        u = np.frombuffer(draw(4 * len(x)), dtype="<u4") * 2.0**-32
        v = np.clip(x, -encoding.clip, encoding.clip) * (omega * encoding.scale)
        words[at : at + len(x)] = np.floor(v + u).astype(np.int64).astype(words.dtype)


def _further(encoding: RingEncoding, omega: float, extras: Mapping[str, float]) -> NDArray[np.int64]:
    """The weight and the extra coordinates: integers in [0, S_w], under noise in [-bound/2 S, bound/2 S]."""
    values = [] if encoding.uniform else [round(omega * encoding.weight_scale)]
    for extra in encoding.extras:
        value = extras.get(extra.name, math.nan)
        if not math.isfinite(value):
            raise LocalError(Code.NOT_FINITE, f"Expected a finite number for {extra.name!r}.")
        value = min(max(value, 0.0), extra.bound)
        if encoding.sum_sigma:
            values.append(math.trunc((value - extra.bound / 2) * encoding.scale))
        else:
            values.append(round(value / extra.bound * omega * encoding.weight_scale) if extra.bound else 0)
    return np.array(values, dtype=np.int64)


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


def add_server_noise(encoding: RingEncoding, total: Words, seed: bytes) -> None:
    """The aggregator: its noise, onto the opened sum [words] in place; `seed`: 32 fresh bytes, kept for repeats."""
    if encoding.server_sigma:
        total += discrete_gaussian(seed, encoding.server_sigma, len(total)).astype(total.dtype)


def decode(encoding: RingEncoding, total: Words, survivors: int) -> Decoded:
    """The unmasked sum [words] over `survivors` members as a mean.

    Raises `PeerError(OUT_OF_RANGE)` if a coordinate is larger than `survivors` honest members can make it
    (masks that did not cancel, or a cheat), and if no weight is left.
    """
    noised = len(total) if encoding.sum_sigma else encoding.dimension
    signed = total[:noised].view(f"<i{encoding.bits // 8}")
    limit = _bound(encoding, survivors)
    if len(signed) and max(int(signed.max()), -int(signed.min())) > limit:
        raise PeerError(Code.OUT_OF_RANGE, f"A coordinate of the sum exceeds {limit:.0f}.")
    further = [int(word) for word in total[noised:]]
    if any(word > survivors * encoding.weight_scale for word in further):
        raise PeerError(Code.OUT_OF_RANGE, "The sum of weights exceeds what the survivors can have.")
    weight = float(survivors) if encoding.uniform else further.pop(0) / encoding.weight_scale
    if weight == 0:
        raise PeerError(Code.OUT_OF_RANGE, "The survivors' weights add up to nothing.")
    mean = np.empty(encoding.dimension, dtype=np.float32)
    np.divide(signed[: encoding.dimension], encoding.scale * weight, out=mean, casting="unsafe")
    if encoding.sum_sigma:
        extras = {
            extra.name: int(word) / encoding.scale / weight + extra.bound / 2
            for extra, word in zip(encoding.extras, signed[encoding.dimension :], strict=True)
        }
    else:
        extras = {
            extra.name: word / encoding.weight_scale * extra.bound / weight
            for extra, word in zip(encoding.extras, further, strict=True)
        }
    return Decoded(mean=mean, weight=weight, extras=extras)
