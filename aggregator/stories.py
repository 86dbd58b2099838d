"""Brings `why.py` what the store knows of a run, a round or a client. Called by the Operator service and `web`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from aggregator import why
from aggregator.members import Phase, Stage
from aggregator.store import fleet, history
from aggregator.store.engine import Database
from aggregator.store.records import RunEvent
from aggregator.store.schema import cohort, rounds, runs
from aggregator.why import Happening, Part, Pass, Story, Whole
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind


@dataclass(frozen=True)
class Asked:
    """What somebody wants to know: of a run, of one of its rounds (by number; 0: of all), of a client (""): of all)."""

    run_id: str
    number: int = 0
    client_id: str = ""


async def tell(database: Database, asked: Asked, now_ms: int) -> Story:
    """The story. Raises `PeerError` UNKNOWN_RUN, UNKNOWN_ROUND, UNKNOWN_CLIENT."""
    return await database.run(lambda c: _tell(c, asked, now_ms))


def to_json(story: Story) -> str:
    """The story as JSON, field by field."""
    return json.dumps(asdict(story), separators=(",", ":"))


def _tell(connection: Connection, asked: Asked, now_ms: int) -> Story:
    run = connection.execute(select(runs).where(runs.c.run_id == asked.run_id)).one_or_none()
    if run is None:
        found = f"Found no run {asked.run_id[:64]!r}."
        raise PeerError(Code.UNKNOWN_RUN, found, fix="See `fedless run list`.")
    passes = _passes(connection, asked)
    if asked.number and not passes:
        raise PeerError(Code.UNKNOWN_ROUND, f"Run {asked.run_id} has no round {asked.number}.")
    if asked.client_id:
        return _of_client(connection, asked, passes, now_ms)
    if asked.number:
        newest = passes[-1]
        return why.of_round(newest, _events(connection, asked.run_id, newest.round_id), now_ms)
    whole = Whole(
        run.run_id,
        run.state,
        run.reason,
        run.started_at_ms,
        run.ended_at_ms,
        passes,
        _judging_ms(connection, run.run_id),
    )
    own = history.select_events(connection, asked.run_id, own=True, names=why.CLOSERS)
    return why.of_run(whole, _happenings(own), now_ms)


def _judging_ms(connection: Connection, run_id: str) -> int:
    """How long the run's evaluations on devices took, those that have ended."""
    took = func.sum(rounds.c.ended_at_ms - rounds.c.opened_at_ms)
    mine = (rounds.c.run_id == run_id) & (rounds.c.kind == Kind.EVALUATE.value) & (rounds.c.ended_at_ms > 0)
    return int(connection.scalar(select(took).where(mine)) or 0)


def _of_client(connection: Connection, asked: Asked, passes: Sequence[Pass], now_ms: int) -> Story:
    """The client in one round, or in the newest ones, one after another."""
    state = fleet.state_of(connection, asked.client_id)
    known = any(part.client_id == asked.client_id for each in passes for part in each.parts)
    if state is None and not known:
        raise PeerError(
            Code.UNKNOWN_CLIENT, f"Found no client {asked.client_id[:64]!r}.", fix="See `fedless fleet list`."
        )
    present = f"Now it is {state or 'not of this fleet'}."
    stories = [
        why.of_client(
            asked.client_id, each, _events(connection, asked.run_id, each.round_id), present, now_ms
        )
        for each in (passes[-1:] if asked.number else passes[-why.NAMED :])
    ]
    if len(stories) == 1:
        return stories[0]
    together = Story(f"{asked.client_id} in run {asked.run_id}")
    if not stories:
        together.lines.append(f"The run has had no round yet. {present}")
    for each in stories:
        together.lines.append(f"{each.title.rpartition(' in ')[2].capitalize()}: {' '.join(each.lines)}")
    return together


def _passes(connection: Connection, asked: Asked) -> list[Pass]:
    """The training rounds that are asked for, with their cohorts, in order."""
    mine = (rounds.c.run_id == asked.run_id) & (rounds.c.kind == Kind.TRAIN.value)
    if asked.number:
        mine &= rounds.c.number == asked.number
    rows = connection.execute(select(rounds).where(mine).order_by(rounds.c.round_id)).all()
    ids = [row.round_id for row in rows]
    parts: dict[int, list[Part]] = {round_id: [] for round_id in ids}
    members = select(cohort).join(rounds).where(mine).order_by(cohort.c.client_id)
    for row in connection.execute(members):
        parts[row.round_id].append(_part(row))
    return [_pass(row, parts[row.round_id]) for row in rows]


def _pass(row: Row[Any], parts: list[Part]) -> Pass:
    return Pass(
        round_id=row.round_id, number=row.number, phase=Phase(row.phase), reason=row.reason, mode=row.mode,
        goal=min(row.terms["goal"], len(parts)), minimum=row.terms["minimum"],
        opened_at_ms=row.opened_at_ms, ended_at_ms=row.ended_at_ms, deadline_at_ms=row.terms["deadline_at_ms"],
        phases_ms=row.phases_ms, parts=parts,
    )  # fmt: skip


def _part(row: Row[Any]) -> Part:
    timings = row.invocation.get("timings_ms", {})
    return Part(row.client_id, Stage(row.stage), row.checked_in_at_ms, row.settled_at_ms, row.loss, timings)


def _events(connection: Connection, run_id: str, round_id: int) -> list[Happening]:
    return _happenings(history.select_events(connection, run_id, round_id=round_id))


def _happenings(events: Sequence[RunEvent]) -> list[Happening]:
    return [Happening(each.at_ms, each.event, each.round_id, each.client_id, each.fields) for each in events]
