"""*Pure.* Uniform selection: everybody is as likely as everybody else (McMahan et al. 2017, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw, shuffled


def uniform(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """The ids of `draw.count` candidates (or all, if fewer), without repetition, sorted."""
    order = shuffled([record.client_id for record in candidates], draw.generator())
    return sorted(order[: draw.count])
