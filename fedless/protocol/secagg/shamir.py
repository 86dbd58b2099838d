"""*Pure.* Shamir's secret sharing over the smallest prime field that holds 32 bytes.

The client splits, the aggregator rebuilds. Shamir, "How to share a secret", CACM 1979. The field is
p = 2^256 + 297; a share is f(x) as 33 bytes, big-endian, with x the member's index in the roster, from 1.
Integers are Python's: not constant-time, which is acceptable because a holder splits only its own secrets
and does so once per key epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedless.protocol.crypto import KEY_BYTES
from fedless.protocol.errors import Code, PeerError

PRIME = 2**256 + 297
SHARE_BYTES = 33
COEFFICIENT_BYTES = 48
"""Bytes of a stream per coefficient: reduced mod p they are uniform up to 2^-127."""
_STEPS = 16  # Horner steps between two reductions: x has at most 7 bits, so numbers stay under 400 bits


def coefficients(random_bytes: bytes) -> list[int]:
    """Field elements from a multiple of 48 uniform bytes, one for each."""
    step = COEFFICIENT_BYTES
    return [
        int.from_bytes(random_bytes[at : at + step], "big") % PRIME
        for at in range(0, len(random_bytes), step)
    ]


def split(secret: bytes, higher: Sequence[int], points: Sequence[int]) -> list[bytes]:
    """Shares of a 32-byte `secret` at `points`: f(x) = secret + higher[0] x + higher[1] x^2 + ...

    Any len(higher) + 1 shares rebuild it, fewer say nothing.
    """
    descending = [*reversed(higher), int.from_bytes(secret, "big")]
    blocks = [descending[at : at + _STEPS] for at in range(0, len(descending), _STEPS)]
    return [_evaluate(blocks, x).to_bytes(SHARE_BYTES, "big") for x in points]


def _evaluate(blocks: Sequence[Sequence[int]], x: int) -> int:
    value = 0
    for block in blocks:
        for coefficient in block:
            value = value * x + coefficient
        value %= PRIME
    return value


def weights(points: Sequence[int]) -> list[int]:
    """Lagrange weights at zero for distinct `points`, with one inversion for all of them.

    w_j = prod over m != j of x_m / (x_m - x_j). The same for every secret with the same holders.
    """
    denominators = []
    for x in points:
        product = 1
        for other in points:
            if other != x:
                product = product * (other - x) % PRIME
        denominators.append(product * x % PRIME)
    total = 1
    for x in points:
        total = total * x % PRIME
    return [total * inverse % PRIME for inverse in _inverses(denominators)]


def _inverses(values: Sequence[int]) -> list[int]:
    """The inverses of all `values` (Montgomery's trick)."""
    prefix = [1]
    for value in values:
        prefix.append(prefix[-1] * value % PRIME)
    inverse = pow(prefix[-1], -1, PRIME)
    result = [0] * len(values)
    for at in range(len(values) - 1, -1, -1):
        result[at] = prefix[at] * inverse % PRIME
        inverse = inverse * values[at] % PRIME
    return result


def rebuild(shares: Sequence[bytes], lagrange: Sequence[int]) -> bytes:
    """The secret of `shares` whose points gave the weights `lagrange`, in the same order.

    Raises `PeerError(BAD_SHARE)` if a share is no field element or the result is longer than 32 bytes.
    """
    value = sum(_element(share) * weight for share, weight in zip(shares, lagrange, strict=True)) % PRIME
    if value >> (8 * KEY_BYTES):
        raise PeerError(Code.BAD_SHARE, "The shares do not belong together.")
    return value.to_bytes(KEY_BYTES, "big")


def reconstruct(shares: Mapping[int, bytes]) -> bytes:
    """The secret of `shares` by point, all of which are used. Raises `PeerError(BAD_SHARE)`."""
    return rebuild(list(shares.values()), weights(list(shares)))


def _element(share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise PeerError(Code.BAD_SHARE, f"Expected {SHARE_BYTES} bytes below the field's prime.")
    return value
