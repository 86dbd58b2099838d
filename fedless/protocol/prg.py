"""*Pure.* Adds and subtracts the streams of many seeds to one vector, at nearly the cipher's speed.

Called by the client (masks its own vector in place), the aggregator (unmasks) and the helper (sums streams).
A 256 KiB chunk of the vector stays in the cache while every seed's stream passes over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.crypto import Prg, stream

if TYPE_CHECKING:
    from collections.abc import Iterable

Words = NDArray[np.uint32] | NDArray[np.uint16]
"""A vector in the ring Z_2^w: uint32 (w = 32) or uint16 (w = 16); sums wrap around."""

CHUNK_BYTES = 256 * 1024


def word_dtype(bits: int) -> np.dtype[np.uint32] | np.dtype[np.uint16]:
    """Little-endian dtype of ring words of `bits` (16 or 32)."""
    return np.dtype("<u4") if bits == 32 else np.dtype("<u2")  # noqa: PLR2004


def apply_streams(words: Words, prg: Prg, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
    """Add the stream of every 32-byte seed in `plus` to `words` [d], subtract those in `minus`, in place."""
    adding = [stream(prg, seed) for seed in plus]
    subtracting = [stream(prg, seed) for seed in minus]
    zeros = bytes(CHUNK_BYTES)
    buffer = bytearray(CHUNK_BYTES)
    step = CHUNK_BYTES // words.dtype.itemsize
    for start in range(0, len(words), step):
        part = words[start : start + step]
        view = memoryview(buffer)[: part.nbytes]
        zero = memoryview(zeros)[: part.nbytes]
        key_stream = np.frombuffer(view, dtype=words.dtype)
        for cipher in adding:
            cipher.update_into(zero, view)
            np.add(part, key_stream, out=part)
        for cipher in subtracting:
            cipher.update_into(zero, view)
            np.subtract(part, key_stream, out=part)


def expand(prg: Prg, seed: bytes, dimension: int, bits: int) -> Words:
    """The first `dimension` words of the stream of `seed`."""
    words: Words = np.zeros(dimension, dtype=word_dtype(bits))
    apply_streams(words, prg, plus=[seed])
    return words
