"""Cloud functions as clients: which platform invokes each and how, and the claims of their invocations.

Functions on a connection, for one transaction each. A row here is what makes a client a function: its certificates
then have that role and end with the claim that they were given for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from aggregator.store import fleet
from aggregator.store.schema import Json, metadata

functions = Table(
    "functions",
    metadata,
    Column("client_id", ForeignKey("clients.client_id"), primary_key=True),
    Column("platform", String(32), nullable=False),
    Column("settings", Json, nullable=False),
    Column("added_at_ms", BigInteger, nullable=False),
)


@dataclass(frozen=True)
class FunctionRow:
    """A registered function: the platform's name, and the settings of its invoker."""

    client_id: str
    platform: str
    settings: Mapping[str, Any]


def add(
    connection: Connection, client_id: str, platform: str, settings: Mapping[str, Any], now_ms: int
) -> bool:
    """Registers a function, or gives a registered one new settings; False when that client is a device."""
    values = {"platform": platform, "settings": dict(settings)}
    labels = {"platform": platform}
    state = {"state": fleet.ENROLLED, "labels": labels, "enrolled_at_ms": now_ms, "revoked_reason": ""}
    mine = functions.c.client_id == client_id
    if find(connection, client_id) is not None:
        connection.execute(update(functions).where(mine).values(values))
        connection.execute(update(fleet.clients).where(fleet.clients.c.client_id == client_id).values(state))
        return True
    if fleet.state_of(connection, client_id) is not None:
        return False
    connection.execute(insert(fleet.clients).values(client_id=client_id, **state))
    connection.execute(insert(functions).values(client_id=client_id, added_at_ms=now_ms, **values))
    return True


def find(connection: Connection, client_id: str) -> FunctionRow | None:
    """The function with this id; None for devices and for nobody."""
    row = connection.execute(select(functions).where(functions.c.client_id == client_id)).first()
    return None if row is None else FunctionRow(row.client_id, row.platform, row.settings)


def ids(connection: Connection) -> frozenset[str]:
    """Which clients are functions."""
    return frozenset(connection.scalars(select(functions.c.client_id)))


def add_claim(
    connection: Connection, client_id: str, secret_hash: bytes, now_ms: int, expires_at_ms: int
) -> bool:
    """Records the claim of one invocation and forgets those that ended; False unless the client is enrolled."""
    if fleet.state_of(connection, client_id) != fleet.ENROLLED:
        return False
    claims, certificates = fleet.claims, fleet.certificates
    ended = (claims.c.client_id == client_id) & (claims.c.expires_at_ms <= now_ms)
    connection.execute(delete(claims).where(ended))
    ended = (certificates.c.client_id == client_id) & (certificates.c.not_after_ms <= now_ms)
    connection.execute(delete(certificates).where(ended))
    values = {"secret_hash": secret_hash, "client_id": client_id, "issued_at_ms": now_ms}
    connection.execute(insert(claims).values(expires_at_ms=expires_at_ms, **values))
    return True
