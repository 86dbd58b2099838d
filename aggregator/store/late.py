"""Clients that go over from a closed round to the next one, in the database. Functions on a connection.

`carried` says where a ticket of an earlier round counts now; a member's row in the closed round stays as it was, late.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from aggregator import late
from aggregator.members import Member, Stage, Terms
from aggregator.staleness import Late
from aggregator.store import rounds
from aggregator.store.schema import carried


def take_over(connection: Connection, terms: Terms, now_ms: int) -> dict[str, Member]:
    """The late clients of the run's last round as members of the one that opens now; the others are too late."""
    closed = rounds.newest(connection, terms.run_id) if terms.late else None
    if closed is None:
        return {}
    over = late.taken_over(closed.state, terms, now_ms)
    for member in over.values():
        _carry(connection, terms.round_id, member)
    for member in late.leave_behind(closed.state, over, now_ms):
        closed.put(member)
    rounds.save(connection, closed, now_ms)
    return over


def where_now(connection: Connection, ticket_round_id: int, client_id: str) -> int:
    """The round that has taken a client's ticket of an earlier one over; 0: none has."""
    mine = (carried.c.ticket_round_id == ticket_round_id) & (carried.c.client_id == client_id)
    return int(connection.scalar(select(carried.c.round_id).where(mine)) or 0)


def at_work(connection: Connection, run_id: str, taken: Late | None) -> set[str]:
    """Who is still at work for the run's last round, which is closed; nobody, where late reports are not taken."""
    closed = None if taken is None else rounds.newest(connection, run_id)
    members = [] if closed is None else closed.state.members.values()
    return {member.client_id for member in members if member.stage is Stage.LATE}


def give_up(connection: Connection, run_id: str, now_ms: int) -> None:
    """The run is over: whoever is still at work is too late."""
    closed = rounds.newest(connection, run_id)
    if closed is not None:
        for member in late.leave_behind(closed.state, {}, now_ms):
            closed.put(member)
        rounds.save(connection, closed, now_ms)


def _carry(connection: Connection, round_id: int, member: Member) -> None:
    origin = member.origin
    if origin is None:
        raise AssertionError  # `taken_over` gave it one
    mine = (carried.c.ticket_round_id == origin.round_id) & (carried.c.client_id == member.client_id)
    moved = connection.execute(update(carried).where(mine).values(round_id=round_id))
    if moved.rowcount == 0:
        connection.execute(
            insert(carried).values(
                ticket_round_id=origin.round_id,
                client_id=member.client_id,
                round_id=round_id,
                model_version=origin.model_version,
                until_ms=origin.until_ms,
            )
        )
