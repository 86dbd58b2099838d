"""What the pages and metrics show, read from the store in one transaction each. Functions on a connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from aggregator.members import ENDED, Stage
from aggregator.store import fleet, history, runs
from aggregator.store.fleet import ClientRow
from aggregator.store.records import RunInfo
from aggregator.store.schema import cohort, rounds
from aggregator.store.schema import runs as run_table
from fedless.protocol.messages import Kind

RUNS_SHOWN = 50


@dataclass(frozen=True)
class Totals:
    """Everything that is counted, since the fleet began. Times in ms, sizes in bytes; keys are label values."""

    clients: Mapping[str, int]
    online: int
    resting: int
    runs: Mapping[str, int]
    rounds: Mapping[tuple[str, str], int]  # (mode, phase)
    round_ms: Mapping[str, tuple[int, float]]  # mode: how many have ended, and their time together
    phase_ms: Mapping[tuple[str, str], float]  # (mode, phase's name)
    reports: int
    refusals: Mapping[str, int]
    losses: Mapping[str, int]
    bytes_down: int
    bytes_up: int
    alarms: int


@dataclass(frozen=True)
class Overview:
    """The first page: the fleet's clients and its newest runs, newest first."""

    clients: Sequence[ClientRow]
    counts: Mapping[str, Mapping[str, int]]
    runs: Sequence[RunInfo]


def totals(connection: Connection, now_ms: int) -> Totals:
    """All counts."""
    clients = fleet.all_clients(connection)
    trained = rounds.c.kind == Kind.TRAIN.value
    counted: Counter[str] = Counter()
    for names in history.counts(connection).values():
        counted.update(names)
    states = select(run_table.c.state, func.count()).group_by(run_table.c.state)
    phases = select(rounds.c.mode, rounds.c.phase, func.count()).where(trained)
    lost = select(cohort.c.loss, func.count()).where(cohort.c.stage == Stage.LOST.value)
    moved = select(func.sum(cohort.c.bytes_down), func.sum(cohort.c.bytes_up))
    down, up = connection.execute(moved).one()
    ended, parts = _times(connection)
    enrolled = [client for client in clients if client.state == fleet.ENROLLED]
    return Totals(
        clients=Counter(client.state for client in clients),
        online=sum(client.online for client in enrolled),
        resting=sum(client.not_before_ms > now_ms for client in enrolled),
        runs=_counted(connection, states),
        rounds={
            (mode, phase): count
            for mode, phase, count in connection.execute(phases.group_by(rounds.c.mode, rounds.c.phase))
        },
        round_ms=ended,
        phase_ms=parts,
        reports=counted.pop("reports", 0),
        refusals=counted,
        losses=_counted(connection, lost.group_by(cohort.c.loss)),
        bytes_down=int(down or 0),
        bytes_up=int(up or 0),
        alarms=int(connection.scalar(select(func.count()).select_from(fleet.alarms)) or 0),
    )


def overview(connection: Connection) -> Overview:
    """What the first page shows."""
    newest = select(run_table.c.run_id).order_by(run_table.c.started_at_ms.desc()).limit(RUNS_SHOWN)
    shown = [runs.show(connection, run_id) for run_id in connection.scalars(newest)]
    return Overview(fleet.all_clients(connection), history.counts(connection), shown)


def _counted(connection: Connection, query: Select[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(query)}


def _times(
    connection: Connection,
) -> tuple[dict[str, tuple[int, float]], dict[tuple[str, str], float]]:
    """Of training rounds that have ended: by mode how many and how long, and by mode and phase how long."""
    ended: dict[str, tuple[int, float]] = {}
    parts: dict[tuple[str, str], float] = {}
    query = select(rounds.c.mode, rounds.c.opened_at_ms, rounds.c.ended_at_ms, rounds.c.phases_ms).where(
        rounds.c.kind == Kind.TRAIN.value, rounds.c.phase.in_([phase.value for phase in ENDED])
    )
    for mode, opened, end, phases in connection.execute(query):
        count, total = ended.get(mode, (0, 0.0))
        ended[mode] = (count + 1, total + max(0, end - opened))
        for name, ms in phases.items():
            parts[mode, name] = parts.get((mode, name), 0.0) + ms
    return ended, parts
