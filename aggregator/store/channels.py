"""Which model each named channel serves (`production`, say), and all that it served before. Functions on a connection.

A channel's history is only ever added to: a promotion puts a model on top, a rollback takes the top one off. So
what was served at any moment can be told, and a rollback of a rollback goes one further back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKeyConstraint,
    Integer,
    Row,
    String,
    Table,
    func,
    insert,
    select,
)

from aggregator.store.schema import metadata

PROMOTED, ROLLED_BACK = "promoted", "rolled_back"

promotions = Table(
    "promotions",
    metadata,
    Column("channel", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("what", String(16), nullable=False),  # promoted, rolled_back
    Column("run_id", String(64), nullable=False),  # the model that is served from then on
    Column("version", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["run_id", "version"], ["models.run_id", "models.version"]),
)


@dataclass(frozen=True)
class Promotion:
    """One step of a channel's history; what it serves from then on."""

    channel: str
    sequence: int
    what: str
    run_id: str
    version: int
    at_ms: int


def history(connection: Connection, channel: str) -> list[Promotion]:
    """All steps of a channel, oldest first."""
    query = select(promotions).where(promotions.c.channel == channel).order_by(promotions.c.sequence)
    return [_promotion(row) for row in connection.execute(query)]


def current(connection: Connection) -> list[Promotion]:
    """What each channel serves now, by name."""
    newest = select(promotions.c.channel, func.max(promotions.c.sequence).label("last")).group_by(
        promotions.c.channel
    )
    last = newest.subquery()
    query = select(promotions).join(
        last, (last.c.channel == promotions.c.channel) & (last.c.last == promotions.c.sequence)
    )
    return [_promotion(row) for row in connection.execute(query.order_by(promotions.c.channel))]


def promote(connection: Connection, channel: str, run_id: str, version: int, now_ms: int) -> Promotion:
    """Puts a model on top; again the same one changes nothing."""
    steps = history(connection, channel)
    if steps and (steps[-1].run_id, steps[-1].version) == (run_id, version):
        return steps[-1]
    return _add(connection, Promotion(channel, len(steps) + 1, PROMOTED, run_id, version, now_ms))


def roll_back(connection: Connection, channel: str, now_ms: int) -> Promotion | None:
    """Takes the top model off; what is served then. None where there was none before it."""
    steps = history(connection, channel)
    served: list[Promotion] = []
    for step in steps:
        if step.what == PROMOTED:
            served.append(step)
        else:
            served.pop()
    if len(served) < 2:  # noqa: PLR2004 - one to take off, one to go back to
        return None
    earlier = served[-2]
    step = Promotion(channel, len(steps) + 1, ROLLED_BACK, earlier.run_id, earlier.version, now_ms)
    return _add(connection, step)


def _add(connection: Connection, step: Promotion) -> Promotion:
    values = {
        "channel": step.channel,
        "sequence": step.sequence,
        "what": step.what,
        "run_id": step.run_id,
        "version": step.version,
        "at_ms": step.at_ms,
    }
    connection.execute(insert(promotions).values(values))
    return step


def _promotion(row: Row[Any]) -> Promotion:
    return Promotion(row.channel, row.sequence, row.what, row.run_id, row.version, row.at_ms)
