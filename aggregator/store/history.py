"""The event log of each run, and counters by client. Functions on a connection, part of a larger step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from aggregator.store.records import RunEvent
from aggregator.store.schema import counters, events

PAGE = 500


def note(
    connection: Connection,
    run_id: str,
    event: str,
    at_ms: int,
    *,
    round_id: int = 0,
    client_id: str = "",
    **fields: Any,  # noqa: ANN401 - any JSON value
) -> None:
    """Appends one event (a name in past tense) to the run's log."""
    last = connection.scalar(select(func.max(events.c.sequence)).where(events.c.run_id == run_id))
    row = {"at_ms": at_ms, "event": event, "round_id": round_id, "client_id": client_id, "fields": fields}
    connection.execute(insert(events).values(run_id=run_id, sequence=(last or 0) + 1, **row))


def read(connection: Connection, run_id: str, after: int) -> list[RunEvent]:
    """The next events (at most 500) behind a sequence number."""
    rows = connection.execute(
        select(events)
        .where(events.c.run_id == run_id, events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(PAGE)
    )
    return [_event(row) for row in rows]


def last_at_ms(connection: Connection, run_id: str) -> int:
    """When the run's newest event happened; 0: there is none."""
    return int(connection.scalar(select(func.max(events.c.at_ms)).where(events.c.run_id == run_id)) or 0)


def count(connection: Connection, client_id: str, name: str, at_ms: int) -> None:
    """One more of this name for this client: a refusal's code, or "reports"."""
    mine = (counters.c.client_id == client_id) & (counters.c.name == name)
    raised = connection.execute(
        update(counters).where(mine).values(count=counters.c.count + 1, last_at_ms=at_ms)
    )
    if raised.rowcount == 0:
        connection.execute(insert(counters).values(client_id=client_id, name=name, count=1, last_at_ms=at_ms))


def counts(connection: Connection) -> Mapping[str, Mapping[str, int]]:
    """All counters: client id -> name -> count."""
    found: dict[str, dict[str, int]] = {}
    query = select(counters.c.client_id, counters.c.name, counters.c.count.label("times"))
    for row in connection.execute(query):
        found.setdefault(row.client_id, {})[row.name] = row.times
    return found


def select_events(
    connection: Connection, run_id: str, *, round_id: int = 0, own: bool = False, names: Sequence[str] = ()
) -> list[RunEvent]:
    """A run's events in order: those of one round or key epoch, or all; `own`: of no client, but for these `names`."""
    query = select(events).where(events.c.run_id == run_id)
    if round_id:
        query = query.where((events.c.round_id == round_id) | (events.c.round_id == 0))
    if own:
        query = query.where((events.c.client_id == "") | events.c.event.in_(names))
    return [_event(row) for row in connection.execute(query.order_by(events.c.sequence))]


def _event(row: Row[Any]) -> RunEvent:
    return RunEvent(row.sequence, row.at_ms, row.event, row.round_id, row.client_id, row.fields)
