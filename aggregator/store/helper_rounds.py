"""Rounds in helper mode in the database. Functions on a connection, part of a larger step.

The set that the helper is asked about is the accepted reports without the refused ones, so that the same question is
asked again after a restart. Nothing in here is secret: seeds are sealed to the helper.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Connection, ForeignKey, LargeBinary, Table, insert, select, update

from aggregator.members import Stage
from aggregator.store.schema import Json, cohort, metadata
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.helper_messages import HelperOpen

# `opened`: HelperOpen as it was signed. `refused`: code by client id of the reports that the helper refused.
helper_rounds = Table(
    "helper_rounds",
    metadata,
    Column("round_id", ForeignKey("rounds.round_id"), primary_key=True),
    Column("opened", LargeBinary, nullable=False),
    Column("refused", Json, nullable=False, default=dict),
)


def insert_opened(connection: Connection, opened: HelperOpen) -> None:
    """Writes down a round that was opened."""
    values = {"round_id": opened.round_id, "opened": codec.dumps(opened), "refused": {}}
    connection.execute(insert(helper_rounds).values(values))


def load_opened(connection: Connection, round_id: int) -> HelperOpen:
    """A round as it was opened; raises `PeerError` UNKNOWN_ROUND."""
    found = connection.scalar(select(helper_rounds.c.opened).where(helper_rounds.c.round_id == round_id))
    if found is None:
        raise PeerError(Code.UNKNOWN_ROUND, f"Round {round_id} is not in helper mode.")
    return codec.loads(HelperOpen, found)


def load_refused(connection: Connection, round_id: int) -> dict[str, Code]:
    """Whose reports the helper refused, and why."""
    found = connection.scalar(select(helper_rounds.c.refused).where(helper_rounds.c.round_id == round_id))
    return {client_id: Code.of(code) for client_id, code in (found or {}).items()}


def save_refused(connection: Connection, round_id: int, refused: Mapping[str, Code]) -> None:
    """Writes down whose reports the helper refused so far."""
    values = {"refused": {client_id: code.value for client_id, code in refused.items()}}
    connection.execute(update(helper_rounds).where(helper_rounds.c.round_id == round_id).values(values))


def lose_refused(connection: Connection, round_id: int, refused: Mapping[str, Code]) -> None:
    """When the round ends: clients whose reports the helper refused were not counted."""
    for client_id, code in refused.items():
        mine = (cohort.c.round_id == round_id) & (cohort.c.client_id == client_id)
        connection.execute(update(cohort).where(mine).values(stage=Stage.LOST.value, loss=code.value))
