"""*Pure.* Selection by weight: a client's label `weight=3`, or three cores, draw it as readily as three others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw, weighted_order

LABEL = "weight"


def weighted(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """By labels: the ids of `draw.count` candidates (or all, if fewer), without repetition, sorted."""
    return _drawn(candidates, [weight(record.labels) for record in candidates], draw)


def capacity(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """By processor cores, as devices told them (1 where that is not known): as `weighted`."""
    return _drawn(candidates, [max(1, record.cores) for record in candidates], draw)


def _drawn(candidates: Sequence[ClientRecord], weights: Sequence[float], draw: Draw) -> list[str]:
    ids, logs = [record.client_id for record in candidates], [math.log(each) for each in weights]
    return sorted(weighted_order(ids, logs, draw.generator())[: draw.count])


def weight(labels: Mapping[str, str]) -> float:
    """The label's number; 1 where there is none, or none above 0."""
    try:
        number = float(labels.get(LABEL, ""))
    except ValueError:
        return 1.0
    return number if 0.0 < number < math.inf else 1.0
