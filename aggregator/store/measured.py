"""What the fleet's clients were like in their last training rounds, over all runs. Functions on a connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Connection, Row, func, select

from aggregator.members import Loss, Phase, Stage
from aggregator.store.fleet import ENROLLED, clients
from aggregator.store.functions import functions
from aggregator.store.schema import cohort, rounds, runs
from fedless.protocol.messages import Kind

RECENT = 20
"""Rounds of a client that are looked at."""
ROUNDS = 50
"""Committed rounds whose phases are looked at."""


@dataclass(frozen=True)
class Line:
    """One client in one training round; times in ms, 0: unknown. `task` is the run's task as clients got it.

    `counts`: whether it says anything of the client's presence (a round that had enough without it does not).
    """

    counts: bool
    reported: bool
    wake_ms: int
    work_ms: int
    task: bytes
    bundle_digest: bytes
    invocation: Mapping[str, Any]


def lines(connection: Connection) -> dict[str, list[Line]]:
    """Each client's last training rounds that have ended (at most `RECENT`), the newest first, by client id."""
    place = func.row_number().over(partition_by=cohort.c.client_id, order_by=rounds.c.round_id.desc())
    ended = (rounds.c.kind == Kind.TRAIN.value) & (rounds.c.ended_at_ms > 0)
    chosen = (
        select(cohort, rounds.c.opened_at_ms, runs.c.task, runs.c.bundle_digest, place.label("place"))
        .join(rounds, rounds.c.round_id == cohort.c.round_id)
        .join(runs, runs.c.run_id == rounds.c.run_id)
        .where(ended)
        .subquery()
    )
    query = select(chosen).where(chosen.c.place <= RECENT).order_by(chosen.c.client_id, chosen.c.place)
    found: dict[str, list[Line]] = {}
    for row in connection.execute(query):
        found.setdefault(row.client_id, []).append(_line(row))
    return found


def _line(row: Row[Any]) -> Line:
    reported = row.stage == Stage.REPORTED
    came = row.checked_in_at_ms > 0
    return Line(
        counts=reported or row.loss != Loss.SURPLUS,
        reported=reported,
        wake_ms=max(1, row.checked_in_at_ms - row.opened_at_ms) if came else 0,
        work_ms=max(1, row.settled_at_ms - row.checked_in_at_ms) if came and reported else 0,
        task=row.task,
        bundle_digest=row.bundle_digest,
        invocation=row.invocation,
    )


def phases_ms(connection: Connection, mode: str) -> dict[str, float]:
    """The median of each phase of the newest committed training rounds in this mode, ms; {} before there was one."""
    query = (
        select(rounds.c.phases_ms)
        .where(rounds.c.kind == Kind.TRAIN.value, rounds.c.mode == mode)
        .where(rounds.c.phase == Phase.COMMITTED.value)
        .order_by(rounds.c.round_id.desc())
        .limit(ROUNDS)
    )
    found: dict[str, list[float]] = {}
    for row in connection.execute(query):
        for name, value in row.phases_ms.items():
            found.setdefault(name, []).append(value)
    return {name: median(values) for name, values in found.items()}


def profiles(connection: Connection) -> dict[str, Mapping[str, Any]]:
    """What devices told of themselves last, by client id; {} for one that told nothing."""
    query = select(
        clients.c.client_id, clients.c.profile, clients.c.not_before_ms, clients.c.not_before_reason
    )
    return {
        row.client_id: {
            **row.profile,
            "not_before_ms": row.not_before_ms,
            "not_before_reason": row.not_before_reason,
        }
        for row in connection.execute(query)
    }


def deployments(connection: Connection) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Each cloud function's platform and settings, by client id."""
    return {row.client_id: (row.platform, row.settings) for row in connection.execute(select(functions))}


def resting(connection: Connection, now_ms: int) -> dict[str, tuple[int, str]]:
    """The enrolled clients that said "not before T, because R", by id: T in Unix ms, and R."""
    query = select(clients).where(clients.c.state == ENROLLED, clients.c.not_before_ms > now_ms)
    return {row.client_id: (row.not_before_ms, row.not_before_reason) for row in connection.execute(query)}
