"""Runs and their models in the database. Functions on a connection, part of a larger step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from aggregator.members import Stage
from aggregator.store import late
from aggregator.store.records import (
    GOING_ON,
    Invocation,
    ModelRecord,
    RoundInfo,
    RunInfo,
    RunRecord,
    RunState,
)
from aggregator.store.schema import cohort, model_state, models, rounds, runs
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind


def insert_run(
    connection: Connection, record: RunRecord, task_name: str, rounds_wanted: int, now_ms: int
) -> None:
    """Writes down a new run."""
    connection.execute(
        insert(runs).values(
            run_id=record.run_id,
            task_name=task_name,
            settings=record.settings,
            task=record.task,
            bundle_digest=record.bundle_digest,
            test_set_digest=record.test_set_digest,
            state=record.state.value,
            rounds_wanted=rounds_wanted,
            started_at_ms=now_ms,
        )
    )


def insert_model(connection: Connection, run_id: str, model: ModelRecord, now_ms: int) -> None:
    """Writes down a version with its strategy's state; the primary key refuses one that exists."""
    connection.execute(
        insert(models).values(
            run_id=run_id,
            version=model.version,
            digest=model.digest,
            round_id=model.round_id,
            created_at_ms=now_ms,
        )
    )
    for name, digest in model.state.items():
        values = {"run_id": run_id, "version": model.version, "name": name, "digest": digest}
        connection.execute(insert(model_state).values(values))


def newest_model(connection: Connection, run_id: str) -> ModelRecord:
    """The run's newest version."""
    query = select(models).where(models.c.run_id == run_id).order_by(models.c.version.desc()).limit(1)
    return _model(connection, connection.execute(query).one())


def model(connection: Connection, run_id: str, version: int) -> ModelRecord:
    """One version of the run's model."""
    query = select(models).where(models.c.run_id == run_id, models.c.version == version)
    return _model(connection, connection.execute(query).one())


def _model(connection: Connection, row: Row[Any]) -> ModelRecord:
    mine = (model_state.c.run_id == row.run_id) & (model_state.c.version == row.version)
    state = connection.execute(select(model_state.c.name, model_state.c.digest).where(mine))
    return ModelRecord(row.version, row.digest, row.round_id, {line.name: line.digest for line in state})


def scores(connection: Connection, run_id: str) -> list[tuple[int, Mapping[str, float]]]:
    """Each version with the metrics of the round that made it, oldest first; the initial one is left out."""
    query = (
        select(models.c.version, rounds.c.metrics)
        .join(rounds, rounds.c.round_id == models.c.round_id)
        .where(models.c.run_id == run_id)
        .order_by(models.c.version)
    )
    return [(row.version, row.metrics) for row in connection.execute(query)]


def set_state(connection: Connection, run_id: str, state: RunState, reason: str, now_ms: int) -> None:
    """Changes where the run is; with an ended state also when it ended."""
    ended = 0 if state in GOING_ON else now_ms
    values = {"state": state.value, "reason": reason, "ended_at_ms": ended}
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(values))
    if ended:
        late.give_up(connection, run_id, now_ms)


def set_reason(connection: Connection, run_id: str, reason: str) -> None:
    """Says what the run waits for; empty: nothing. One that has ended keeps the reason of that."""
    running = (runs.c.run_id == run_id) & (runs.c.state == RunState.RUNNING.value)
    connection.execute(update(runs).where(running).values(reason=reason))


def load(connection: Connection, run_id: str) -> RunRecord:
    """What the driver needs; raises `PeerError` UNKNOWN_RUN."""
    row = _row(connection, run_id)
    return RunRecord(
        row.run_id, row.settings, row.task, row.bundle_digest, row.test_set_digest, RunState(row.state)
    )


def state(connection: Connection, run_id: str) -> RunState:
    """Where a run is; raises `PeerError` UNKNOWN_RUN."""
    return RunState(_row(connection, run_id).state)


def going_on(connection: Connection) -> list[str]:
    """Ids of the runs that have not ended, the paused ones too."""
    query = select(runs.c.run_id).where(runs.c.state.in_([state.value for state in GOING_ON]))
    return [row.run_id for row in connection.execute(query.order_by(runs.c.started_at_ms))]


def show(connection: Connection, run_id: str) -> RunInfo:
    """A run with all its training rounds; raises `PeerError` UNKNOWN_RUN."""
    return _info(connection, _row(connection, run_id))


def all_runs(connection: Connection) -> list[RunInfo]:
    """Every run, the oldest first."""
    return [_info(connection, row) for row in connection.execute(select(runs).order_by(runs.c.started_at_ms))]


def invocations(connection: Connection, run_id: str) -> list[Invocation]:
    """What the run's clients reported of their invocations, in the order of rounds."""
    query = (
        select(cohort.c.client_id, cohort.c.round_id, cohort.c.invocation)
        .join(rounds)
        .where(rounds.c.run_id == run_id)
        .order_by(cohort.c.round_id, cohort.c.client_id)
    )
    return [
        Invocation(row.client_id, row.round_id, row.invocation)
        for row in connection.execute(query)
        if row.invocation
    ]


def _row(connection: Connection, run_id: str) -> Row[Any]:
    row = connection.execute(select(runs).where(runs.c.run_id == run_id)).one_or_none()
    if row is None:
        raise PeerError(Code.UNKNOWN_RUN, f"Found no run {run_id[:64]!r}.", fix="See `fedless run list`.")
    return row


def _info(connection: Connection, row: Row[Any]) -> RunInfo:
    newest = newest_model(connection, row.run_id)
    query = select(rounds).where(rounds.c.run_id == row.run_id, rounds.c.kind == Kind.TRAIN.value)
    found = connection.execute(query.order_by(rounds.c.round_id)).all()
    return RunInfo(
        run_id=row.run_id,
        task_name=row.task_name,
        state=RunState(row.state),
        reason=row.reason,
        rounds_wanted=row.rounds_wanted,
        model_version=newest.version,
        model_digest=newest.digest,
        started_at_ms=row.started_at_ms,
        ended_at_ms=row.ended_at_ms,
        rounds=tuple(_round_info(connection, round_row) for round_row in found),
    )


def _round_info(connection: Connection, row: Row[Any]) -> RoundInfo:
    members = connection.execute(select(cohort).where(cohort.c.round_id == row.round_id)).all()
    reported = [member for member in members if member.stage == Stage.REPORTED.value]
    return RoundInfo(
        round_id=row.round_id,
        number=row.number,
        state=row.phase,
        reason=row.reason,
        mode=row.mode,
        selected=len(members),
        checked_in=sum(member.checked_in_at_ms > 0 for member in members),
        reported=len(reported),
        examples=sum(member.examples for member in reported),
        opened_at_ms=row.opened_at_ms,
        ended_at_ms=row.ended_at_ms,
        metrics=row.metrics,
        phases_ms=row.phases_ms,
        losses=_losses(members),
        bytes_down=sum(member.bytes_down for member in members),
        bytes_up=sum(member.bytes_up for member in members),
    )


def _losses(members: Sequence[Row[Any]]) -> Mapping[str, int]:
    return Counter(member.loss for member in members if member.stage == Stage.LOST.value)
