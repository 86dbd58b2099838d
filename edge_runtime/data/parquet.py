"""Provider `parquet`: one Parquet file, columns as `columns` says. Needs the extra `parquet` (pyarrow)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.columns import Wanted, plan, refused
from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Model


def load(source: DataSource, model: Model, *, labels: bool) -> Mapping[str, NDArray[Any]]:
    """The file's columns as arrays. Raises `LocalError(NOT_INSTALLED | DATA_UNREADABLE)`, and as `csv`."""
    try:
        import pyarrow as pa  # noqa: PLC0415  (an extra, and 40 MB)
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise LocalError(
            Code.NOT_INSTALLED, "Parquet files need pyarrow.", fix="Install fedless[parquet]."
        ) from None
    try:
        wanted = plan(pq.read_schema(source.path).names, source, model, labels=labels)
        needed = sorted({name for one in wanted for name in one.columns})
        table = pq.read_table(source.path, columns=needed)
    except pa.ArrowInvalid as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{source.path} is not a Parquet file: {error}.") from None
    columns = {name: table.column(name).to_numpy() for name in needed}
    return {one.name: _joined(one, columns, source) for one in wanted}


def _joined(one: Wanted, columns: Mapping[str, NDArray[Any]], source: DataSource) -> NDArray[Any]:
    return np.stack([_numbers(one, name, columns[name], source) for name in one.columns], 1).reshape(
        -1, *one.shape
    )


def _numbers(one: Wanted, name: str, values: NDArray[Any], source: DataSource) -> NDArray[Any]:
    """One column; numbers as they are, anything else cell by cell."""
    if values.dtype.kind in "iuf" and not one.classes:
        return values
    try:
        return np.array([one.number(value) for value in values], np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise refused(source, f"column {name}", error) from None
