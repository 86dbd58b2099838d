"""*Pure.* Selection: who takes part in a round, one file for each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.uniform import uniform

Selection = Callable[[Sequence[ClientRecord], int, bytes], list[str]]
"""From candidates, how many are wanted and 32 random bytes to the ids of the chosen (at most as many)."""

SELECTIONS: Mapping[str, Selection] = {"uniform": uniform}
"""By the name that a task gives."""
