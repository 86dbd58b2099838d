"""The privacy ledger in the database: what each client's data has been spent on. Functions on a connection.

Rows are only ever added, before what they stand for is released; an abandoned round stays. A row's round is unique
for its client, so that charging again after a crash changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    LargeBinary,
    String,
    Table,
    func,
    insert,
    select,
    update,
)

from aggregator.store.schema import metadata

# `spend`: releases / z^2 of that round. `unit`: client or example. `round_id` of a row that a restored back-up caused
# is a fresh id that no round has.
privacy_ledger = Table(
    "privacy_ledger",
    metadata,
    Column("client_id", String(64), primary_key=True),
    Column("round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", String(16), nullable=False),
    Column("run_id", String(64), nullable=False, index=True),
    Column("spend", Float(53), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

# The seed of the aggregator's own noise in a round, kept so that a repeat after a crash gives the same sum; erased with
# the commit.
noise_seeds = Table(
    "noise_seeds",
    metadata,
    Column("round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seed", LargeBinary, nullable=False),
)


def charge(
    connection: Connection,
    round_id: int,
    run_id: str,
    clients: Sequence[str],
    *,
    unit: str,
    spend: float,
    at_ms: int,
) -> int:
    """Charges each client once for a round; how many there were that were not charged for it already."""
    mine = privacy_ledger.c.round_id == round_id
    known = set(connection.scalars(select(privacy_ledger.c.client_id).where(mine)))
    fixed = {"round_id": round_id, "run_id": run_id, "unit": unit, "spend": spend, "at_ms": at_ms}
    rows = [{"client_id": client_id, **fixed} for client_id in clients if client_id not in known]
    if rows:
        connection.execute(insert(privacy_ledger), rows)
    return len(rows)


def spent(connection: Connection, unit: str, *, but: int = 0) -> Mapping[str, float]:
    """What every client has spent in all runs of the fleet, without the round `but`."""
    total = func.sum(privacy_ledger.c.spend).label("total")
    query = select(privacy_ledger.c.client_id, total).where(
        privacy_ledger.c.unit == unit, privacy_ledger.c.round_id != but
    )
    return {
        row.client_id: float(row.total)
        for row in connection.execute(query.group_by(privacy_ledger.c.client_id))
    }


def clients_of(connection: Connection, run_id: str) -> set[str]:
    """Who was charged for a round of this run."""
    mine = privacy_ledger.c.run_id == run_id
    return set(connection.scalars(select(privacy_ledger.c.client_id).where(mine).distinct()))


def counts(connection: Connection) -> Mapping[tuple[str, str], tuple[int, float]]:
    """The whole ledger: (client, unit) -> how many rounds, and what they cost together."""
    ledger = privacy_ledger.c
    query = select(
        ledger.client_id, ledger.unit, func.count().label("rounds"), func.sum(ledger.spend).label("total")
    )
    return {
        (row.client_id, row.unit): (int(row.rounds), float(row.total))
        for row in connection.execute(
            query.group_by(ledger.client_id, ledger.unit).order_by(ledger.client_id)
        )
    }


def keep_seed(connection: Connection, round_id: int, seed: bytes) -> None:
    """Keeps the seed of a round's noise, unless it has one."""
    if load_seed(connection, round_id) is None:
        connection.execute(insert(noise_seeds).values(round_id=round_id, seed=seed))


def load_seed(connection: Connection, round_id: int) -> bytes | None:
    """The seed of a round's noise; None if it has none, empty if it was erased."""
    found: bytes | None = connection.scalar(
        select(noise_seeds.c.seed).where(noise_seeds.c.round_id == round_id)
    )
    return found


def erase_seed(connection: Connection, round_id: int) -> None:
    """When the noised model is committed: without the seed nobody takes the noise off again."""
    connection.execute(update(noise_seeds).where(noise_seeds.c.round_id == round_id).values(seed=b""))
