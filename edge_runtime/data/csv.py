"""Provider `csv`: one table with a header line, one example a line; columns as `columns` says.

Read line by line into packed numbers: a table costs its numbers, not its text.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.columns import Wanted, plan, refused
from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Model


def load(source: DataSource, model: Model, *, labels: bool) -> Mapping[str, NDArray[Any]]:
    """The table's columns as arrays. Raises `LocalError(DATA_UNREADABLE | DATA_MISSING | DATA_SHAPE | ...)`."""
    try:
        with Path(source.path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            wanted = plan(header, source, model, labels=labels)
            rows = ((lines.line_num, row) for row in lines if row)
            return _read(rows, header, wanted, source)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{source.path} is not a CSV file: {error}.") from None


def _read(
    rows: Iterable[tuple[int, Sequence[str]]],
    header: Sequence[str],
    wanted: Sequence[Wanted],
    source: DataSource,
) -> dict[str, NDArray[Any]]:
    stores = [array("f" if one.dtype == "float32" else "d") for one in wanted]
    places = [[header.index(name) for name in one.columns] for one in wanted]
    for number, row in rows:
        if len(row) != len(header):
            raise LocalError(
                Code.DATA_UNREADABLE,
                f"{source.path}, line {number}: {len(row)} fields; the header has {len(header)}.",
            )
        for one, store, place in zip(wanted, stores, places, strict=True):
            try:
                store.extend([one.number(row[at]) for at in place])
            except (KeyError, ValueError) as error:
                raise refused(source, f"line {number}, {one.name}", error) from None
    return {
        one.name: np.asarray(store).reshape(-1, *one.shape) for one, store in zip(wanted, stores, strict=True)
    }
