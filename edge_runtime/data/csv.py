"""Provider `csv`: one table with a header line, one example a line.

A label is the column of its name. An input takes the columns that `columns` lists, or, for the only input,
all columns that are not labels, in the file's order; their number must be that of the input's elements. Texts
in a label's column are looked up in `classes`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input, Model


def load(source: DataSource, model: Model, *, labels: bool) -> Mapping[str, NDArray[Any]]:
    """The table's columns as arrays. Raises `LocalError(DATA_UNREADABLE | DATA_MISSING | DATA_RANGE)`."""
    try:
        with Path(source.path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [row for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{source.path} is not a CSV file: {error}.") from None
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise LocalError(
                Code.DATA_UNREADABLE,
                f"{source.path}, line {number}: {len(row)} fields; the header has {len(header)}.",
            )
    table = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())
    return assemble(table, source, model, labels=labels)


def assemble(
    table: Mapping[str, Sequence[Any] | NDArray[Any]], source: DataSource, model: Model, *, labels: bool
) -> dict[str, NDArray[Any]]:
    """The manifest's arrays from named columns (also used by `parquet`)."""
    label_columns = {item.name: source.columns.get(item.name, (item.name,)) for item in model.labels}
    taken = {name for names in label_columns.values() for name in names}
    rest = tuple(name for name in table if name not in taken)
    arrays = {}
    for item in model.inputs:
        names = source.columns.get(item.name) or ((item.name,) if len(model.inputs) > 1 else rest)
        arrays[item.name] = _stack(table, names, item, source)
    if labels:
        for label in model.labels:
            names = label_columns[label.name]
            columns = [_numbers(table, name, source, source.classes) for name in names]
            arrays[label.name] = columns[0] if len(columns) == 1 else np.stack(columns, 1)
    return arrays


def _stack(
    table: Mapping[str, Sequence[Any] | NDArray[Any]], names: Iterable[str], item: Input, source: DataSource
) -> NDArray[Any]:
    columns = [_numbers(table, name, source, ()) for name in names]
    size = int(np.prod(item.shape))
    if len(columns) != size:
        raise LocalError(
            Code.DATA_SHAPE,
            f"The input {item.name} has {size} elements, but {len(columns)} column(s) are given.",
        )
    return np.stack(columns, 1).reshape(-1, *item.shape)


def _numbers(
    table: Mapping[str, Sequence[Any] | NDArray[Any]], name: str, source: DataSource, classes: Sequence[str]
) -> NDArray[np.float64]:
    """One column as numbers, texts through `classes`."""
    if name not in table:
        raise LocalError(
            Code.DATA_MISSING,
            f"{source.path} has no column {name}; it has {', '.join(list(table)[:20])}.",
            fix="Name it in [data] columns.",
        )
    values = table[name]
    try:
        if classes:
            numbers = {text: float(index) for index, text in enumerate(classes)}
            return np.array([numbers[str(value).strip()] for value in values], np.float64)
        return np.array(values, np.float64)
    except KeyError as error:
        raise LocalError(
            Code.DATA_RANGE, f"{source.path}, column {name}: {error} is not one of the classes."
        ) from None
    except (ValueError, TypeError) as error:
        raise LocalError(Code.DATA_DTYPE, f"{source.path}, column {name}: {error}.") from None
