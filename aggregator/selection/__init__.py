"""*Pure.* Selection: who takes part in a round, one file for each rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.apodotiko import apodotiko
from aggregator.selection.draw import Draw
from aggregator.selection.fedlesscan import fedlesscan
from aggregator.selection.oort import oort
from aggregator.selection.uniform import uniform
from aggregator.selection.weighted import capacity, weighted

Selection = Callable[[Sequence[ClientRecord], Draw], list[str]]
"""From candidates and what is wanted to the ids of the chosen (at most as many)."""

SELECTIONS: dict[str, Selection] = {
    "uniform": uniform,
    "weighted": weighted,
    "capacity": capacity,
    "fedlesscan": fedlesscan,
    "apodotiko": apodotiko,
    "oort": oort,
}
"""By the name that a task gives; a user's own are added by `own.load`."""
WITHOUT_A_PAST = frozenset({"uniform", "weighted", "capacity"})
"""Those that do not need `Draw.histories`."""


def register(name: str, selection: Selection) -> None:
    """Adds a user's own; raises `ValueError` for a name that is taken and for what cannot be called."""
    if name in SELECTIONS:
        raise ValueError(f"there is a selection {name} already")
    if not callable(selection):
        raise ValueError(f"expected a function of candidates and a draw, found {type(selection).__name__}")  # noqa: TRY004 - one kind of error
    SELECTIONS[name] = selection


def hidden(name: str) -> str:
    """Why a selection cannot work under masks; empty if it can."""
    return "it must see single losses, which masks hide" if name == "oort" else ""
