"""A strategy and a selection of one's own: copy this file, and the entry points in pyproject.toml beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw
from aggregator.strategies.base import Beside, Strategy


@dataclass(frozen=True)
class HalfStep(Strategy):
    """FedAvg that goes only a part of the way: `part` is its one option."""

    part: float = 0.5

    def scale(self, beside: Beside) -> Sequence[float]:  # noqa: ARG002 - nothing beside the update is needed
        """By what the mean update is multiplied."""
        return (self.part,)


def alphabetical(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """The first clients by their ids, in every round."""
    return sorted(record.client_id for record in candidates)[: draw.count]
