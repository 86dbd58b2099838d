"""Rounds and their cohorts in the database. Functions on a connection, part of a larger step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from aggregator.members import ENDED, OPEN, Cohort, Member, Origin, Phase, Stage, Terms
from aggregator.privacy import Noise, Place
from aggregator.round import Round
from aggregator.staleness import Late, Weighing
from aggregator.store.masks import key_epochs
from aggregator.store.records import GOING_ON, Ending
from aggregator.store.schema import carried, cohort, models, rounds, runs
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Encoding, InvocationMetrics, Kind, Mode, ReportHeader


def next_id(connection: Connection, now_ms: int) -> int:
    """A round id that no round and no key epoch of this fleet ever had, even if the database comes from a back-up.

    At least the Unix time in seconds: a restored database has older ids than those given since.
    """
    last = connection.scalar(select(func.max(rounds.c.round_id))) or 0
    last_epoch = connection.scalar(select(func.max(key_epochs.c.epoch))) or 0
    return max(int(last) + 1, int(last_epoch) + 1, now_ms // 1000)


def next_number(connection: Connection, run_id: str) -> int:
    """The next training round's number within the run, from 1."""
    mine = (rounds.c.run_id == run_id) & (rounds.c.kind == Kind.TRAIN.value)
    return int(connection.scalar(select(func.max(rounds.c.number)).where(mine)) or 0) + 1


def insert_round(connection: Connection, round_: Round) -> None:
    """Writes down a new round and its cohort."""
    terms, state = round_.terms, round_.state
    connection.execute(
        insert(rounds).values(
            round_id=terms.round_id,
            run_id=terms.run_id,
            number=terms.number,
            kind=terms.kind.value,
            mode=terms.mode.value,
            model_version=terms.model_version,
            terms=asdict(terms),
            phase=state.phase.value,
            opened_at_ms=terms.opened_at_ms,
        )
    )
    _insert_members(connection, terms.round_id, state.members.values())
    save_state(connection, round_, terms.opened_at_ms)


def save(connection: Connection, round_: Round, now_ms: int) -> None:
    """Writes down what has changed since the last time."""
    round_id = round_.terms.round_id
    for client_id in round_.changed:
        member = round_.state.members[client_id]
        mine = (cohort.c.round_id == round_id) & (cohort.c.client_id == client_id)
        connection.execute(update(cohort).where(mine).values(_member_values(member)))
    save_state(connection, round_, now_ms)


def save_state(connection: Connection, round_: Round, now_ms: int) -> None:
    """Writes down the round's phase."""
    state, ended = round_.state, round_.phase in ENDED
    values = {"phase": state.phase.value, "reason": state.reason, "grace_until_ms": state.grace_until_ms}
    mine = rounds.c.round_id == round_.terms.round_id
    connection.execute(update(rounds).where(mine).values(values))
    if ended:
        connection.execute(update(rounds).where(mine, rounds.c.ended_at_ms == 0).values(ended_at_ms=now_ms))


def load(connection: Connection, round_id: int) -> Round:
    """A round as it was saved last; raises `PeerError` UNKNOWN_ROUND."""
    row = connection.execute(select(rounds).where(rounds.c.round_id == round_id)).one_or_none()
    if row is None:
        raise PeerError(Code.UNKNOWN_ROUND, f"Found no round {round_id}.")
    members = connection.execute(select(cohort).where(cohort.c.round_id == round_id))
    origins = {
        line.client_id: Origin(line.ticket_round_id, line.model_version, line.until_ms)
        for line in connection.execute(select(carried).where(carried.c.round_id == round_id))
    }
    known = [_member(member, origins.get(member.client_id)) for member in members]
    return Round(_terms(row.terms), Phase(row.phase), known, row.reason, row.grace_until_ms)


def unended(connection: Connection, run_id: str | None = None) -> list[int]:
    """Ids of rounds that are neither committed nor abandoned, oldest first."""
    query = select(rounds.c.round_id).where(rounds.c.phase.not_in([phase.value for phase in ENDED]))
    if run_id is not None:
        query = query.where(rounds.c.run_id == run_id)
    return [row.round_id for row in connection.execute(query.order_by(rounds.c.round_id))]


def orphans(connection: Connection) -> list[int]:
    """Ids of unended rounds of runs that have ended."""
    query = (
        select(rounds.c.round_id)
        .join(runs)
        .where(rounds.c.phase.not_in([phase.value for phase in ENDED]))
        .where(runs.c.state.not_in([state.value for state in GOING_ON]))
    )
    return [row.round_id for row in connection.execute(query)]


def last(connection: Connection, run_id: str, count: int) -> list[Ending]:
    """The run's newest training rounds (at most `count`), the newest first."""
    query = (
        select(rounds)
        .where(rounds.c.run_id == run_id, rounds.c.kind == Kind.TRAIN.value)
        .order_by(rounds.c.round_id.desc())
        .limit(count)
    )
    return [
        Ending(row.round_id, Phase(row.phase), row.reason, row.metrics) for row in connection.execute(query)
    ]


def newest(connection: Connection, run_id: str) -> Round | None:
    """The run's newest training round."""
    found = last(connection, run_id, 1)
    return load(connection, found[0].round_id) if found else None


def newest_private(connection: Connection, run_id: str) -> tuple[Terms, Mapping[str, float]] | None:
    """The run's newest committed training round with its metrics, if it has any."""
    query = (
        select(rounds.c.terms, rounds.c.metrics)
        .where(rounds.c.run_id == run_id, rounds.c.kind == Kind.TRAIN.value)
        .where(rounds.c.phase == Phase.COMMITTED.value)
        .order_by(rounds.c.round_id.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (_terms(row.terms), row.metrics)


def training_round(connection: Connection, run_id: str, number: int) -> int | None:
    """The id of the run's training round of this number."""
    mine = (rounds.c.run_id == run_id) & (rounds.c.kind == Kind.TRAIN.value) & (rounds.c.number == number)
    found: int | None = connection.scalar(select(rounds.c.round_id).where(mine))
    return found


def masked_on(connection: Connection, model_digest: bytes) -> str:
    """The run in which a masked sum over this model was committed, or ""."""
    query = (
        select(rounds.c.run_id)
        .join(models, (models.c.run_id == rounds.c.run_id) & (models.c.version == rounds.c.model_version))
        .where(models.c.digest == model_digest, rounds.c.mode != Mode.PLAIN.value)
        .where(rounds.c.kind == Kind.TRAIN.value, rounds.c.phase == Phase.COMMITTED.value)
        .limit(1)
    )
    return str(connection.scalar(query) or "")


def add_figures(
    connection: Connection,
    round_id: int,
    metrics: Mapping[str, float] | None = None,
    phases_ms: Mapping[str, float] | None = None,
) -> None:
    """Adds metrics and times of phases to what is there."""
    mine = rounds.c.round_id == round_id
    row = connection.execute(select(rounds.c.metrics, rounds.c.phases_ms).where(mine)).one()
    values = {
        "metrics": row.metrics | dict(metrics or {}),
        "phases_ms": row.phases_ms | dict(phases_ms or {}),
    }
    connection.execute(update(rounds).where(mine).values(values))


def metrics(connection: Connection, round_id: int) -> Mapping[str, float]:
    """The round's metrics so far."""
    found: Mapping[str, float] = connection.execute(
        select(rounds.c.metrics).where(rounds.c.round_id == round_id)
    ).scalar_one()
    return found


def save_invocation(connection: Connection, client_id: str, value: InvocationMetrics) -> bool:
    """Keeps a client's own figures of its invocation; False if it is not in the round's cohort."""
    mine = (cohort.c.round_id == value.round_id) & (cohort.c.client_id == client_id)
    figures = {key: item for key, item in asdict(value).items() if key != "round_id"}
    kept = connection.execute(
        update(cohort)
        .where(mine)
        .values(invocation=figures, bytes_down=value.bytes_down, bytes_up=value.bytes_up)
    )
    return kept.rowcount == 1


def unfinished(connection: Connection, round_id: int) -> list[str]:
    """Ids of clients whose last invocation in this round stopped in the middle of the training."""
    mine = select(cohort.c.client_id, cohort.c.invocation).where(cohort.c.round_id == round_id)
    rows = connection.execute(mine.order_by(cohort.c.client_id))
    return [row.client_id for row in rows if row.invocation.get("outcome") == Code.UNFINISHED.value]


def silent(connection: Connection, client_ids: Collection[str]) -> list[tuple[Terms, Member]]:
    """Which of these clients have not checked in to a round that takes reports, with the round's terms."""
    open_ = rounds.c.phase.in_([phase.value for phase in OPEN])
    waited_for = (cohort.c.stage == Stage.SELECTED.value) & open_
    query = select(cohort.c.round_id, cohort.c.client_id).join(rounds).where(waited_for)
    found: dict[int, set[str]] = {}
    for row in connection.execute(query):
        if row.client_id in client_ids:
            found.setdefault(row.round_id, set()).add(row.client_id)
    loaded = {round_id: load(connection, round_id) for round_id in sorted(found)}
    return [
        (round_.terms, round_.state.members[client_id])
        for round_id, round_ in loaded.items()
        for client_id in sorted(found[round_id])
    ]


def _insert_members(connection: Connection, round_id: int, members: Iterable[Member]) -> None:
    rows = [
        {"round_id": round_id, "client_id": member.client_id, "nonce": member.nonce, **_member_values(member)}
        for member in members
    ]
    announced = [
        row for row in rows if "sha256" in row
    ]  # late ones; rows that go together have the same columns
    for alike in (announced, [row for row in rows if "sha256" not in row]):
        if alike:
            connection.execute(insert(cohort), alike)


def _member_values(member: Member) -> dict[str, Any]:
    values: dict[str, Any] = {
        "stage": member.stage.value,
        "checked_in_at_ms": member.checked_in_at_ms,
        "settled_at_ms": member.settled_at_ms,
        "loss": str(member.loss),
    }
    header = member.header
    if header is not None:
        values |= {
            "encoding": header.encoding.value,
            "length_bytes": header.length_bytes,
            "sha256": header.sha256,
            "examples": header.examples,
            "sums": dict(header.sums),
            "masked": header.masked,
        }
    return values


def _member(row: Row[Any], origin: Origin | None) -> Member:
    header = None
    if row.encoding:
        header = ReportHeader(
            row.round_id if origin is None else origin.round_id,
            Encoding(row.encoding),
            row.length_bytes,
            row.sha256,
            row.examples,
            row.sums,
            row.masked,
        )
    stage = Stage(row.stage)
    return Member(
        row.client_id, row.nonce, stage, row.checked_in_at_ms, row.settled_at_ms, row.loss, header, origin
    )


def _terms(values: Mapping[str, Any]) -> Terms:
    late = values.get("late")
    return Terms(
        **{
            **values,
            "kind": Kind(values["kind"]),
            "mode": Mode(values["mode"]),
            "encoding": Encoding(values["encoding"]),
            "late": Late(**{**late, "weighing": Weighing(late["weighing"])}) if late else None,
            "extras": tuple((name, bound) for name, bound in values.get("extras", ())),
            "privacy": _noise(values.get("privacy")),
            "cohorts": tuple(
                Cohort(each["epoch"], each["minimum"], tuple(each["clients"]))
                for each in values.get("cohorts", ())
            ),
        }
    )


def _noise(values: Mapping[str, Any] | None) -> Noise | None:
    return None if values is None else Noise(**{**values, "place": Place(values["place"])})
