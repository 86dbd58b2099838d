"""The models of all runs with what is known of each, and the channels that serve them. Called by the Operator service.

A channel is a name (`production`) that whoever serves or exports a model asks for. Devices are not told of channels:
they train on what a round gives them, and infer from what they trained on last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from aggregator.interfaces import Clock
from aggregator.judgement import Aim, Scored, best
from aggregator.store import channels, history, runs
from aggregator.store.channels import Promotion
from aggregator.store.engine import Database
from aggregator.store.schema import models, rounds
from aggregator.tasks import parse
from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.layout import Range
from fedless.protocol.messages import ID


@dataclass(frozen=True)
class ModelInfo:
    """One version of a run's model; `number` of the round that made it (0: the initial weights).

    `personal`: the elements that are each device's own; the fleet has the initial ones.
    """

    run_id: str
    version: int
    digest: bytes
    bundle_digest: bytes
    number: int
    created_at_ms: int
    metrics: Mapping[str, float]
    channels: Sequence[str]
    is_best: bool
    personal: Sequence[Range] = ()


class Catalogue:
    """All models."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def models(self, run_id: str) -> Sequence[ModelInfo]:
        """A run's versions, oldest first. Raises `PeerError(UNKNOWN_RUN)`."""
        return await self._database.run(lambda c: _models(c, run_id))

    async def channels(self) -> Sequence[Promotion]:
        """What each channel serves."""
        return await self._database.run(channels.current)

    async def history(self, channel: str) -> Sequence[Promotion]:
        """All that a channel served."""
        return await self._database.run(lambda c: channels.history(c, channel))

    async def promote(self, channel: str, run_id: str, version: int | None) -> Promotion:
        """Serves a version from now on; None: the run's best. Raises UNKNOWN_RUN, UNKNOWN_BLOB, RESERVED_NAME."""
        if not ID.fullmatch(channel):
            detail = f"Expected a channel's name of a-z, 0-9 and '-', found {channel[:64]!r}."
            raise PeerError(Code.RESERVED_NAME, detail)
        now = self._clock()

        def work(connection: Connection) -> Promotion:
            found = _models(connection, run_id)
            chosen = [
                each for each in found if (each.is_best if version is None else each.version == version)
            ]
            if not chosen:
                raise PeerError(Code.UNKNOWN_BLOB, _missing(run_id, version, found))
            before = len(channels.history(connection, channel))
            step = channels.promote(connection, channel, run_id, chosen[0].version, now)
            if step.sequence > before:
                history.note(connection, run_id, "model_promoted", now, channel=channel, version=step.version)
            return step

        return await self._database.run(work)

    async def roll_back(self, channel: str) -> Promotion:
        """Serves again what the channel served before. Raises `PeerError(WRONG_STATE)` where there is nothing."""
        now = self._clock()

        def work(connection: Connection) -> Promotion:
            step = channels.roll_back(connection, channel, now)
            if step is None:
                detail = f"Channel {channel[:64]!r} served no other model before."
                raise PeerError(Code.WRONG_STATE, detail, fix="Promote one: `fedless model promote RUN`.")
            history.note(
                connection, step.run_id, "model_rolled_back", now, channel=channel, version=step.version
            )
            return step

        return await self._database.run(work)


def scores(connection: Connection, run_id: str) -> list[Scored]:
    """The run's models with the metrics of their rounds; the initial weights have none."""
    return [Scored(version, metrics) for version, metrics in runs.scores(connection, run_id)]


def aim_of(settings_toml: str) -> Aim:
    """What a run's task is judged by."""
    return parse(settings_toml).aim()


def _models(connection: Connection, run_id: str) -> list[ModelInfo]:
    record = runs.load(connection, run_id)
    personal = wire.task_from_bytes(record.task).personal
    top = best(scores(connection, run_id), aim_of(record.settings))
    serving: dict[int, list[str]] = {}
    for step in channels.current(connection):
        if step.run_id == run_id:
            serving.setdefault(step.version, []).append(step.channel)
    query = (
        select(models, rounds.c.number, rounds.c.metrics)
        .outerjoin(rounds, rounds.c.round_id == models.c.round_id)
        .where(models.c.run_id == run_id, models.c.erased_at_ms == 0)
        .order_by(models.c.version)
    )
    return [
        ModelInfo(
            run_id=run_id, version=row.version, digest=row.digest, bundle_digest=record.bundle_digest,
            number=row.number or 0, created_at_ms=row.created_at_ms, metrics=row.metrics or {},
            channels=serving.get(row.version, ()), is_best=top is not None and row.version == top[0], personal=personal,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def _missing(run_id: str, version: int | None, found: Sequence[ModelInfo]) -> str:
    if version is None:
        return f"No model of run {run_id} was judged, so none is the best: name a version."
    return f"Run {run_id} has versions up to {found[-1].version}, and no {version} (any more)."
