"""*Pure.* TOML tables: read without trust, written so that the same value gives the same text.

`Table` takes one key after another, notes everything that is wrong, and complains about what nobody took: so
a file with five mistakes is refused once, with five complaints. Used by `manifest`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

_MISSING = object()


class Table:
    """One TOML table that is being read; a mistake becomes a complaint, never an error.

    After a complaint the method returns a harmless value, so that reading goes on; `close` on the root says
    whether there was any.
    """

    def __init__(self, where: str, values: Mapping[str, object], complaints: list[str]) -> None:
        self._where = where
        self._left = dict(values)
        self._complaints = complaints
        self._children: list[Table] = []

    @classmethod
    def root(cls, values: Mapping[str, object]) -> Table:
        """The outermost table."""
        return cls("", values, [])

    def close(self) -> list[str]:
        """All complaints so far, those about keys that nobody took included."""
        for child in self._children:
            child.close()
        self._complaints.extend(f"{self._where}{key}: unknown key" for key in sorted(self._left))
        self._left.clear()
        return self._complaints

    def table(self, key: str) -> Table:
        """The table under `key`; an empty one, with a complaint, if it is missing."""
        found = self.optional(key)
        if found is None:
            self._complain(key, "missing table")
            return Table(f"{self._where}{key}.", {}, [])
        return found

    def optional(self, key: str) -> Table | None:
        """The table under `key`, or None."""
        value = self._left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self._complain(key, "must be a table")
            return None
        return self._child(f"{self._where}{key}.", value)

    def tables(self, key: str, least: int, most: int) -> list[Table]:
        """The array of tables under `key`, of `least` to `most` elements."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self._complain(key, "must be an array of tables")
            return []
        if not least <= len(value) <= most:
            self._complain(key, f"must have {least} to {most} elements, has {len(value)}")
            return []
        return [self._child(f"{self._where}{key}[{index}].", item) for index, item in enumerate(value)]

    def text(self, key: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        """A string that `pattern` matches as a whole."""
        value = self._take(key, default)
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        if value is not _MISSING:
            self._complain(key, f"must be a text of the form {pattern.pattern}, is {_shown(value)}")
        return ""

    def texts(self, key: str, pattern: re.Pattern[str], most: int) -> tuple[str, ...]:
        """An array of at most `most` strings that `pattern` matches; missing means empty."""
        value = self._left.pop(key, [])
        if (
            isinstance(value, list)
            and len(value) <= most
            and all(isinstance(item, str) and pattern.fullmatch(item) for item in value)
        ):
            return tuple(value)
        self._complain(key, f"must be an array of at most {most} texts of the form {pattern.pattern}")
        return ()

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in `low`..`high`."""
        value = self._take(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        if value is not _MISSING:
            self._complain(key, f"must be an integer from {low} to {high}, is {_shown(value)}")
        return low

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in `low`..`high`."""
        value = self._take(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        if value is not _MISSING:
            self._complain(key, f"must be a number from {low} to {high}, is {_shown(value)}")
        return low

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._left.pop(key, default)
        if isinstance(value, bool):
            return value
        self._complain(key, f"must be true or false, is {_shown(value)}")
        return default

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of `choices`."""
        value = self._take(key, None)
        if isinstance(value, str) and value in choices:
            return value
        if value is not _MISSING:
            self._complain(key, f"must be one of {', '.join(choices)}, is {_shown(value)}")
        return choices[0]

    def shape(self, key: str, rank: int, dimension: int) -> tuple[int, ...]:
        """At most `rank` integers in 1..`dimension`; the empty array is a single number."""
        value = self._take(key, None)
        if (
            isinstance(value, list)
            and len(value) <= rank
            and all(_whole(item, 1, dimension) for item in value)
        ):
            return tuple(value)
        if value is not _MISSING:
            self._complain(key, f"must be at most {rank} integers from 1 to {dimension}, is {_shown(value)}")
        return ()

    def bounds(self, low: str, high: str) -> tuple[float | None, float | None]:
        """Two finite numbers, the first below the second, or neither."""
        pair = (self._left.pop(low, None), self._left.pop(high, None))
        if pair == (None, None):
            return (None, None)
        numbers = [
            float(item) for item in pair if isinstance(item, int | float) and not isinstance(item, bool)
        ]
        if len(numbers) == len(pair) and all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]:
            return (numbers[0], numbers[1])
        self._complain(low, f"must be a finite number below {high}, and neither comes alone")
        return (None, None)

    def _child(self, where: str, values: Mapping[str, object]) -> Table:
        child = Table(where, values, self._complaints)
        self._children.append(child)
        return child

    def _take(self, key: str, default: object) -> object:
        value = self._left.pop(key, default)
        if value is None:
            self._complain(key, "missing")
            return _MISSING
        return value

    def _complain(self, key: str, what: str) -> None:
        self._complaints.append(f"{self._where}{key}: {what}")


def write_tables(values: Mapping[str, object], prefix: str = "") -> str:
    """TOML text of nested mappings: plain values first, then tables; None is left out."""
    lines: list[str] = []
    nested: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            nested.append(f"\n[{prefix}{key}]\n" + write_tables(value, f"{prefix}{key}."))
        elif isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
            nested.extend(f"\n[[{prefix}{key}]]\n" + write_tables(item, f"{prefix}{key}.") for item in value)
        elif value is not None:
            lines.append(f"{key} = {_value(value)}\n")
    return "".join(lines + nested)


def _value(value: object) -> str:
    """One TOML value; a JSON string is a TOML basic string as long as it has no control characters."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _shown(value: object) -> str:
    """`value` as a short piece of an error text."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004  (a line's worth)
