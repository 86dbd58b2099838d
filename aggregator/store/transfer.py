"""Rows from one database into another, table by table; both have this program's tables. Called by `snapshot.py`.

Memory is bounded by one row or `BATCH_BYTES`, whichever is more: a batch has so many rows as would fit if each were
as large as the table's largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import JSON, Column, Connection, LargeBinary, Row, Table, Text, func, insert, select
from sqlalchemy.exc import DataError

from aggregator.store.schema import owner
from aggregator.store.tables import metadata
from fedless.protocol.errors import Code, LocalError

BATCH_ROWS = 1000
BATCH_BYTES = 4 * 2**20
OnRows = Callable[[int], None]


def copy_rows(source: Connection, target: Connection, on_rows: OnRows) -> int:
    """All rows but those of `owner`, which are about the database itself; how many. `on_rows` hears the count so far.

    Raises `LocalError` STATE_CORRUPT for a value that the other kind of database cannot hold.
    """
    copied = 0
    for table in metadata.sorted_tables:
        if table is owner:
            continue
        names = [column.key for column in table.columns]
        for rows in _batches(source, table):
            try:
                target.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
            except DataError as error:
                detail = f"A row of {table.name} has a value that the other database cannot hold."
                raise LocalError(Code.STATE_CORRUPT, detail) from error
            copied += len(rows)
            on_rows(copied)
    return copied


def _batches(source: Connection, table: Table) -> Iterator[Sequence[Row[Any]]]:
    open_ended = [column for column in table.columns if _is_open_ended(column)]
    largest = 1
    if open_ended:
        sizes = sum((func.length(column) for column in open_ended[1:]), func.length(open_ended[0]))
        largest = source.scalar(select(func.max(sizes))) or 1
    most = max(1, min(BATCH_ROWS, BATCH_BYTES // largest))
    found = source.execute(select(table), execution_options={"stream_results": True})
    while rows := found.fetchmany(most):
        yield rows


def _is_open_ended(column: Column[Any]) -> bool:
    return isinstance(column.type, LargeBinary | Text | JSON) and getattr(column.type, "length", None) is None
