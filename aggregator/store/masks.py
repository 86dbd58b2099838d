"""Key epochs and masked rounds in the database. Functions on a connection, part of a larger step.

States of secure aggregation are stored in the bytes of its codec; what is erased from them is overwritten on the
disk (`secure_delete`). A key epoch's number is unique in the fleet and rising, also after a restored back-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Integer,
    LargeBinary,
    Row,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from aggregator.members import Loss, Phase, Stage
from aggregator.store import erasure
from aggregator.store.schema import Json, cohort, metadata, rounds
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.messages import EpochShares
from fedless.protocol.secagg.server import ServerRound

# One set-up of pairwise masks. `cohort`: nonce (hex) by client id. `state`: ServerEpoch.
key_epochs = Table(
    "key_epochs",
    metadata,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("run_id", ForeignKey("runs.run_id"), nullable=False, index=True),
    Column("cohort", Json, nullable=False),
    Column("minimum", Integer, nullable=False),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("keys_until_ms", BigInteger, nullable=False),
    Column("shares_until_ms", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False, default=""),  # why it ended
    Column("ended_at_ms", BigInteger, nullable=False, default=0),
)

# The members' M2 (`EpochShares`); erased with the key epoch.
epoch_shares = Table(
    "epoch_shares",
    metadata,
    Column("epoch", ForeignKey("key_epochs.epoch"), primary_key=True),
    Column("member", Integer, primary_key=True),
    Column("shares", LargeBinary, nullable=False),
)

# What secure aggregation knows of one cohort of a round in pairwise mode (`ServerRound`); a cohort is a key epoch.
masked_cohorts = Table(
    "masked_cohorts",
    metadata,
    Column("round_id", ForeignKey("rounds.round_id"), primary_key=True),
    Column("epoch", ForeignKey("key_epochs.epoch"), primary_key=True, index=True),
    Column("state", LargeBinary, nullable=False),
)


@dataclass(frozen=True)
class KeyEpoch:
    """One key epoch: whose run it serves, who was asked to join, until when, and how far it is."""

    epoch: int
    run_id: str
    cohort: Mapping[str, bytes]
    minimum: int
    opened_at_ms: int
    keys_until_ms: int
    shares_until_ms: int
    state: ServerEpoch
    reason: str = ""
    ended_at_ms: int = 0

    @property
    def window_ms(self) -> int:
        """How long each of its two steps may take."""
        return self.keys_until_ms - self.opened_at_ms

    def client_of(self, index: int) -> str:
        """The id of member `index` (from 1) of the roster."""
        return self.state.sealed_roster.entries[index - 1].client_id

    @property
    def members(self) -> tuple[str, ...]:
        """The ids of E."""
        return tuple(self.client_of(index) for index in self.state.members)


def insert_epoch(connection: Connection, value: KeyEpoch) -> None:
    """Writes down a new key epoch."""
    connection.execute(
        insert(key_epochs).values(
            epoch=value.epoch,
            run_id=value.run_id,
            cohort={client_id: nonce.hex() for client_id, nonce in value.cohort.items()},
            minimum=value.minimum,
            opened_at_ms=value.opened_at_ms,
            keys_until_ms=value.keys_until_ms,
            shares_until_ms=value.shares_until_ms,
            state=codec.dumps(value.state),
        )
    )


def save_epoch(connection: Connection, value: KeyEpoch) -> bool:
    """Writes down how far a key epoch is; False, and nothing, if it has ended."""
    values = {
        "state": codec.dumps(value.state),
        "keys_until_ms": value.keys_until_ms,
        "shares_until_ms": value.shares_until_ms,
    }
    mine = (key_epochs.c.epoch == value.epoch) & (key_epochs.c.ended_at_ms == 0)
    return connection.execute(update(key_epochs).where(mine).values(values)).rowcount == 1


def end_epoch(connection: Connection, value: KeyEpoch, reason: str, now_ms: int) -> KeyEpoch:
    """Ends a key epoch, and erases the sealed shares; the record of who was in it stays."""
    mine = (key_epochs.c.epoch == value.epoch) & (key_epochs.c.ended_at_ms == 0)
    connection.execute(update(key_epochs).where(mine).values(reason=reason, ended_at_ms=now_ms))
    connection.execute(delete(epoch_shares).where(epoch_shares.c.epoch == value.epoch))
    erasure.note(connection)
    return replace(value, reason=reason, ended_at_ms=now_ms)


def load_epoch(connection: Connection, epoch: int) -> KeyEpoch:
    """A key epoch; raises `PeerError` UNKNOWN_ROUND, since a ticket names it as its round."""
    row = connection.execute(select(key_epochs).where(key_epochs.c.epoch == epoch)).one_or_none()
    if row is None:
        raise PeerError(Code.UNKNOWN_ROUND, f"Found no key epoch {epoch}.")
    return _key_epoch(row)


def open_epochs(connection: Connection, run_id: str) -> list[KeyEpoch]:
    """The run's key epochs that have not ended, the oldest first."""
    mine = (key_epochs.c.run_id == run_id) & (key_epochs.c.ended_at_ms == 0)
    return [
        _key_epoch(row)
        for row in connection.execute(select(key_epochs).where(mine).order_by(key_epochs.c.epoch))
    ]


def set_up_failed(connection: Connection, run_id: str) -> bool:
    """Whether the run's newest key epoch came to its end before it could be used."""
    query = (
        select(key_epochs).where(key_epochs.c.run_id == run_id).order_by(key_epochs.c.epoch.desc()).limit(1)
    )
    row = connection.execute(query).one_or_none()
    return row is not None and bool(row.ended_at_ms) and not _key_epoch(row).members


def longest_epoch(connection: Connection, run_id: str) -> int:
    """The slots of the run's newest key epoch that came to be used; 0: none."""
    query = select(key_epochs).where(key_epochs.c.run_id == run_id).order_by(key_epochs.c.epoch.desc())
    for row in connection.execute(query):
        value = _key_epoch(row)
        if value.state.next_slot and not value.state.abandoned_in_a_row:
            return value.state.slots
    return 0


def end_all(connection: Connection, run_id: str, reason: str, now_ms: int) -> None:
    """Ends the key epochs of a run that has ended."""
    for value in open_epochs(connection, run_id):
        end_epoch(connection, value, reason, now_ms)


def insert_shares(connection: Connection, shares: EpochShares) -> None:
    """Keeps a member's M2."""
    values = {"epoch": shares.epoch, "member": shares.index, "shares": codec.dumps(shares)}
    connection.execute(insert(epoch_shares).values(values))


def load_shares(connection: Connection, epoch: int) -> dict[int, EpochShares]:
    """All M2 of a key epoch by member index."""
    query = select(epoch_shares).where(epoch_shares.c.epoch == epoch)
    return {row.member: codec.loads(EpochShares, row.shares) for row in connection.execute(query)}


def insert_masked(connection: Connection, value: ServerRound) -> None:
    """Writes down that a round was opened in a slot of one of its cohorts."""
    connection.execute(
        insert(masked_cohorts).values(
            round_id=value.open.round_id, epoch=value.open.epoch, state=codec.dumps(value)
        )
    )


def save_masked(connection: Connection, value: ServerRound) -> bool:
    """Writes down how far a cohort of a masked round is; False, and nothing, if it has ended.

    Of one that ends the shares are erased; who answered stays.
    """
    mine = (masked_cohorts.c.round_id == value.open.round_id) & (masked_cohorts.c.epoch == value.open.epoch)
    before = connection.execute(select(masked_cohorts.c.state).where(mine)).scalar_one()
    if codec.loads(ServerRound, before).result is not None:
        return False
    if value.result is not None:
        value = replace(value, responses=tuple(replace(answer, shares=b"") for answer in value.responses))
        erasure.note(connection)
    connection.execute(update(masked_cohorts).where(mine).values(state=codec.dumps(value)))
    return True


def load_masked(connection: Connection, round_id: int) -> list[ServerRound]:
    """A masked round, cohort by cohort, in order of their key epochs; raises `PeerError` UNKNOWN_ROUND."""
    query = select(masked_cohorts.c.state).where(masked_cohorts.c.round_id == round_id)
    rows = connection.execute(query.order_by(masked_cohorts.c.epoch)).all()
    if not rows:
        raise PeerError(Code.UNKNOWN_ROUND, f"Round {round_id} is not in pairwise mode.")
    return [codec.loads(ServerRound, row.state) for row in rows]


def load_with_epochs(connection: Connection, round_id: int) -> list[tuple[ServerRound, KeyEpoch]]:
    """As `load_masked`, each cohort with its key epoch."""
    return [(value, load_epoch(connection, value.open.epoch)) for value in load_masked(connection, round_id)]


def unsettled(connection: Connection, run_id: str) -> list[int]:
    """Ids of the run's rounds that were abandoned, and of which nobody has signed the end yet."""
    query = (
        select(masked_cohorts.c.round_id, masked_cohorts.c.state)
        .join(rounds)
        .where(rounds.c.run_id == run_id, rounds.c.phase == Phase.ABANDONED.value)
    )
    found = [row for row in connection.execute(query) if codec.loads(ServerRound, row.state).result is None]
    return sorted({row.round_id for row in found})


def lose_cohort(connection: Connection, round_id: int, clients: Sequence[str]) -> None:
    """When a round ends: the reports of a cohort whose sum could not be opened were not counted."""
    for client_id in clients:
        mine = (cohort.c.round_id == round_id) & (cohort.c.client_id == client_id)
        values = {"stage": Stage.LOST.value, "loss": Loss.COHORT_ABANDONED.value}
        connection.execute(update(cohort).where(mine).values(values))


def masked_of_epoch(connection: Connection, epoch: int) -> list[ServerRound]:
    """All rounds that were opened in a key epoch, in order of their slots."""
    query = select(masked_cohorts.c.state).where(masked_cohorts.c.epoch == epoch)
    found = [codec.loads(ServerRound, row.state) for row in connection.execute(query)]
    return sorted(found, key=lambda value: value.open.slot)


def _key_epoch(row: Row[Any]) -> KeyEpoch:
    return KeyEpoch(
        epoch=row.epoch,
        run_id=row.run_id,
        cohort={client_id: bytes.fromhex(nonce) for client_id, nonce in row.cohort.items()},
        minimum=row.minimum,
        opened_at_ms=row.opened_at_ms,
        keys_until_ms=row.keys_until_ms,
        shares_until_ms=row.shares_until_ms,
        state=codec.loads(ServerEpoch, row.state),
        reason=row.reason,
        ended_at_ms=row.ended_at_ms,
    )
