"""Provider `parquet`: one Parquet file, columns as for `csv`. Needs the extra `parquet` (pyarrow)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edge_runtime.data.csv import assemble
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
        table = pq.read_table(source.path)
    except pa.ArrowInvalid as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{source.path} is not a Parquet file: {error}.") from None
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return assemble(columns, source, model, labels=labels)
