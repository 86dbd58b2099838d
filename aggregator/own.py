"""Strategies and selections of a user's own: classes and functions that installed packages name as entry points.

The groups are `fedless.strategies` (a subclass of `aggregator.strategies.base.Strategy`, a frozen dataclass) and
`fedless.selections` (a function as `aggregator.selection.Selection`). They are added to the built-in ones, once in a
process, before the first task is read. docs/strategies.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from aggregator import selection, strategies
from fedless.protocol.errors import Code, LocalError

GROUPS: dict[str, Callable[[str, Any], None]] = {
    "fedless.strategies": strategies.register,
    "fedless.selections": selection.register,
}


@cache
def load() -> None:
    """Adds them; again is nothing. Raises `LocalError` CONFIG_INVALID for one that cannot be used."""
    for group, register in GROUPS.items():
        for point in entry_points(group=group):
            _take(group, point, register)


def _take(group: str, point: EntryPoint, register: Callable[[str, Any], None]) -> None:
    try:
        register(point.name, point.load())
    except Exception as error:  # whatever another's module raises when it is imported
        detail = f"The entry point {point.name} = {point.value} of {group} cannot be used: {error}."
        raise LocalError(
            Code.CONFIG_INVALID, detail, fix="Mend or remove the package that names it."
        ) from error
