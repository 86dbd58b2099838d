"""*Pure.* Which columns of a table make up which input or label; used by `csv` and `parquet`.

A label is the column of its name. An input takes the columns that `columns` lists, or, for the only input,
all columns that are not labels, in the table's order; their number must be that of the input's elements.
Texts in a label's column are looked up in `classes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input, Label, Model


@dataclass(frozen=True)
class Wanted:
    """One array of the manifest: its columns in order, the shape of an example, and the numbers of class names."""

    name: str
    columns: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    classes: Mapping[str, int] = field(default_factory=dict)

    def number(self, value: object) -> float:
        """A cell as a number. Raises KeyError for an unknown class, ValueError or TypeError for no number."""
        if self.classes:
            return self.classes[str(value).strip()]
        return float(value)  # type: ignore[arg-type]


def plan(header: Sequence[str], source: DataSource, model: Model, *, labels: bool) -> list[Wanted]:
    """What to take from a table with these columns. Raises `LocalError(DATA_MISSING | DATA_SHAPE)`."""
    label_columns = {item.name: source.columns.get(item.name, (item.name,)) for item in model.labels}
    taken = {name for names in label_columns.values() for name in names}
    rest = tuple(name for name in header if name not in taken)
    wanted = []
    for item in model.inputs:
        names = source.columns.get(item.name) or ((item.name,) if len(model.inputs) > 1 else rest)
        wanted.append(_wanted(item, names))
    if labels:
        numbers = {text: index for index, text in enumerate(source.classes)}
        wanted.extend(_wanted(item, label_columns[item.name], numbers) for item in model.labels)
    for name in (name for one in wanted for name in one.columns):
        if name not in header:
            raise LocalError(
                Code.DATA_MISSING,
                f"{source.path} has no column {name}; it has {', '.join(header[:20])}.",
                fix="Name it in [data] columns.",
            )
    return wanted


def _wanted(item: Input | Label, names: tuple[str, ...], classes: Mapping[str, int] | None = None) -> Wanted:
    if len(names) != math.prod(item.shape):
        raise LocalError(
            Code.DATA_SHAPE,
            f"{item.name} has {math.prod(item.shape)} elements, but {len(names)} column(s) are given.",
        )
    return Wanted(item.name, names, item.shape, item.dtype, classes or {})


def refused(source: DataSource, where: str, error: Exception) -> LocalError:
    """The error for a cell that is no number or no class: `where` says line or column."""
    if isinstance(error, KeyError):
        return LocalError(Code.DATA_RANGE, f"{source.path}, {where}: {error} is not one of the classes.")
    return LocalError(Code.DATA_DTYPE, f"{source.path}, {where}: {error}.")
