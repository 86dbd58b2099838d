"""What a run's clients did in its training rounds, for selections that look back. A function on a connection."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, select

from aggregator.members import Loss, Stage
from aggregator.selection.draw import RECENT, History, Past
from aggregator.store.schema import cohort, rounds
from fedless.protocol.messages import Kind


def histories(connection: Connection, run_id: str) -> dict[str, History]:
    """Each client's history, by its id; clients that were never selected are left out."""
    client = cohort.c.client_id
    mine = (rounds.c.run_id == run_id) & (rounds.c.kind == Kind.TRAIN.value)
    # A late client has one ticket, and a line in each round that had it: the first says when, the last what became.
    ticket, newest_first = (client, cohort.c.nonce), rounds.c.number.desc()
    last = func.row_number().over(partition_by=ticket, order_by=newest_first).label("last")
    number = func.min(rounds.c.number).over(partition_by=ticket).label("number")
    tickets = select(cohort, number, last).join(rounds).where(mine).subquery()
    whose = tickets.c.client_id
    place = func.row_number().over(partition_by=whose, order_by=tickets.c.number.desc()).label("place")
    times = func.count().over(partition_by=whose).label("times")
    lines = select(tickets, place, times).where(tickets.c.last == 1).subquery()
    query = select(lines).where(lines.c.place <= RECENT).order_by(lines.c.client_id, lines.c.place)
    found: dict[str, History] = {}
    for row in connection.execute(query):
        before = found.get(row.client_id, History(row.times))
        found[row.client_id] = History(row.times, (*before.recent, _past(row)))
    return found


def _past(row: Row[Any]) -> Past:
    """One line of a cohort. Who did not even check in was missed, whether or not the others were enough."""
    excused = row.loss == Loss.SURPLUS and row.checked_in_at_ms > 0
    worked = row.checked_in_at_ms > 0 and row.settled_at_ms > 0
    return Past(
        number=row.number,
        reported=row.stage == Stage.REPORTED,
        missed=row.stage == Stage.LOST and not excused,
        took_ms=max(1, row.settled_at_ms - row.checked_in_at_ms) if worked else 0,
        examples=row.examples,
        loss=row.sums.get("loss", 0.0) / row.examples if row.examples else 0.0,
    )
