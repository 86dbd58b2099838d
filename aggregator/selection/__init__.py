"""*Pure.* Selection: who takes part in a round, one file for each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.apodotiko import apodotiko
from aggregator.selection.draw import Draw
from aggregator.selection.fedlesscan import fedlesscan
from aggregator.selection.uniform import uniform
from aggregator.selection.weighted import weighted

Selection = Callable[[Sequence[ClientRecord], Draw], list[str]]
"""From candidates and what is wanted to the ids of the chosen (at most as many)."""

SELECTIONS: Mapping[str, Selection] = {
    "uniform": uniform,
    "weighted": weighted,
    "fedlesscan": fedlesscan,
    "apodotiko": apodotiko,
}
"""By the name that a task gives."""
LOOK_BACK = frozenset({"fedlesscan", "apodotiko"})
"""Those that need `Draw.histories`."""
