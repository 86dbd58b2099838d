"""*Pure.* Uniform selection: everybody is as likely as everybody else (McMahan et al. 2017, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aggregator.interfaces import ClientRecord


def uniform(candidates: Sequence[ClientRecord], count: int, randomness: bytes) -> list[str]:
    """The ids of `count` candidates (or all, if fewer), without repetition, sorted.

    `randomness` is 32 bytes; the same bytes and candidates give the same choice.
    """
    generator = np.random.default_rng(int.from_bytes(randomness))
    chosen = generator.choice(len(candidates), size=min(count, len(candidates)), replace=False)
    return sorted(candidates[int(index)].client_id for index in chosen)
