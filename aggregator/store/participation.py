"""What a run's clients did in its training rounds, for selections that look back. A function on a connection."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, select

from aggregator.members import Loss, Phase, Stage
from aggregator.selection.back_off import Missed
from aggregator.selection.draw import RECENT, History, Past
from aggregator.store.schema import cohort, rounds
from fedless.protocol.errors import Code
from fedless.protocol.messages import Kind

LOOKED_AT = 40
"""Training rounds in which failures in a row are looked for: more than the longest rest."""
ABSENT = (Loss.NEVER_CHECKED_IN.value, Loss.NEVER_REPORTED.value)
NO_FAILURE = (Loss.COHORT_ABANDONED.value, Code.NOT_NOW.value)


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


def missed(connection: Connection, run_id: str) -> dict[str, Missed]:
    """How many of a run's last training rounds each client missed in a row, by its id; 0 is left out.

    Not counted: being absent from a round that was abandoned, which says nothing against its clients; a report that
    a round had enough without; and "not now".
    """
    mine = (rounds.c.run_id == run_id) & (rounds.c.kind == Kind.TRAIN.value)
    newest = connection.scalar(select(func.max(rounds.c.number)).where(mine)) or 0
    settled = cohort.c.stage.in_([Stage.REPORTED.value, Stage.LOST.value])
    query = (
        select(
            cohort.c.client_id,
            cohort.c.stage,
            cohort.c.loss,
            cohort.c.checked_in_at_ms,
            rounds.c.number,
            rounds.c.phase,
        )
        .join(rounds)
        .where(mine, rounds.c.number > newest - LOOKED_AT, settled)
        .order_by(rounds.c.number.desc())
    )
    found: dict[str, Missed] = {}
    over: set[str] = set()
    for row in connection.execute(query):
        if row.stage == Stage.REPORTED:
            over.add(row.client_id)
        elif row.client_id not in over and _failed(row):
            before = found.get(row.client_id, Missed(0, row.number))
            found[row.client_id] = Missed(before.times + 1, before.last)
    return found


def gains(connection: Connection, run_id: str) -> list[float]:
    """`Draw.gains` of a run."""
    query = (
        select(rounds.c.metrics)
        .where(rounds.c.run_id == run_id, rounds.c.kind == Kind.TRAIN.value)
        .where(rounds.c.phase == Phase.COMMITTED.value)
        .order_by(rounds.c.number)
    )
    return [
        metrics.get("train_loss", 0.0) * metrics.get("train_examples", 0.0)
        for metrics in connection.scalars(query)
    ]


def _failed(row: Row[*tuple[Any, ...]]) -> bool:
    if row.loss in NO_FAILURE or (row.loss == Loss.SURPLUS and row.checked_in_at_ms):
        return False
    return not (row.phase == Phase.ABANDONED and row.loss in ABSENT)


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
