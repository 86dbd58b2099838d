"""*Pure.* Selection by label: a client with `weight=3` is drawn as readily as three without a label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw, weighted_order

LABEL = "weight"


def weighted(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """The ids of `draw.count` candidates (or all, if fewer), without repetition, sorted."""
    order = weighted_order(
        [record.client_id for record in candidates],
        [math.log(weight(record.labels)) for record in candidates],
        draw.generator(),
    )
    return sorted(order[: draw.count])


def weight(labels: Mapping[str, str]) -> float:
    """The label's number; 1 where there is none, or none above 0."""
    try:
        number = float(labels.get(LABEL, ""))
    except ValueError:
        return 1.0
    return number if 0.0 < number < math.inf else 1.0
