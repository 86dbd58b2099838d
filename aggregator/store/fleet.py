"""Clients, claims, certificates and alarms: tables, and functions on a connection for one transaction each.

A claim is stored as the SHA-256 of its secret. A used claim keeps the public key and the chain that it
gave out, so that the same request gets the same answer byte for byte. The deny list is the set of
revoked certificates that have not ended yet. All times are Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    LargeBinary,
    Row,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)

from aggregator.store import operators
from aggregator.store.schema import Json, metadata

CLAIMED, ENROLLED, REVOKED, REMOVED = "claimed", "enrolled", "revoked", "removed"
PRESENT, GONE = frozenset({CLAIMED, ENROLLED}), frozenset({REVOKED, REMOVED})

clients = Table(
    "clients",
    metadata,
    Column("client_id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("labels", Json, nullable=False),
    Column("enrolled_at_ms", BigInteger, nullable=False, default=0),
    Column("last_seen_ms", BigInteger, nullable=False, default=0),
    Column("online", Boolean, nullable=False, default=False),
    Column("not_before_ms", BigInteger, nullable=False, default=0),
    Column("not_before_reason", Text, nullable=False, default=""),
    Column("profile", Json, nullable=False, default=dict),
    Column("revoked_reason", Text, nullable=False, default=""),
    Column(
        "name", String(64), nullable=False, default=""
    ),  # for people; the id is in certificates and topics
)

claims = Table(
    "claims",
    metadata,
    Column("secret_hash", LargeBinary(32), primary_key=True),
    Column("client_id", ForeignKey("clients.client_id"), nullable=False, index=True),
    Column("issued_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("used_at_ms", BigInteger, nullable=False, default=0),
    Column("public_key", LargeBinary, nullable=False, default=b""),
    Column("leaf_der", LargeBinary, nullable=False, default=b""),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(48), primary_key=True),
    Column("client_id", ForeignKey("clients.client_id"), nullable=False, index=True),
    Column("issued_at_ms", BigInteger, nullable=False),
    Column("not_after_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=False, default=0),
)

alarms = Table(
    "alarms",
    metadata,
    Column("at_ms", BigInteger, nullable=False),
    Column("what", String(64), nullable=False),
    Column("client_id", String(64), nullable=False),
    Column("source", String(128), nullable=False),
    Index("ix_alarms_at_ms", "at_ms"),
)


@dataclass(frozen=True)
class ClientRow:
    """What is known of a client; `profile` is its newest `DeviceStatus` as a mapping."""

    client_id: str
    state: str
    labels: Mapping[str, str]
    enrolled_at_ms: int
    last_seen_ms: int
    online: bool
    not_before_ms: int
    not_before_reason: str
    profile: Mapping[str, Any]
    certificate_not_after_ms: int
    name: str = ""
    revoked_reason: str = ""


def add_claim(
    connection: Connection,
    client_id: str,
    secret_hash: bytes,
    labels: Mapping[str, str],
    issued_at_ms: int,
    expires_at_ms: int,
) -> bool:
    """Records a claim for a client; False, and nothing recorded, when that client is enrolled."""
    state = state_of(connection, client_id)
    if state == ENROLLED:
        return False
    if state is None:
        connection.execute(insert(clients).values(client_id=client_id, state=CLAIMED, labels=dict(labels)))
    elif labels or state == REMOVED:
        values = {"labels": dict(labels)} if labels else {}
        shown = {"state": REVOKED} if state == REMOVED else {}
        connection.execute(update(clients).where(clients.c.client_id == client_id).values(**values, **shown))
    connection.execute(
        insert(claims).values(
            secret_hash=secret_hash,
            client_id=client_id,
            issued_at_ms=issued_at_ms,
            expires_at_ms=expires_at_ms,
        )
    )
    return True


def claim(connection: Connection, secret_hash: bytes) -> Row[Any] | None:
    """The claim with this hash."""
    return connection.execute(select(claims).where(claims.c.secret_hash == secret_hash)).first()


def state_of(connection: Connection, client_id: str) -> str | None:
    """A client's state; None when there is no such client."""
    return connection.scalar(select(clients.c.state).where(clients.c.client_id == client_id))


def use_claim(
    connection: Connection, secret_hash: bytes, public_key: bytes, leaf_der: bytes, now_ms: int
) -> None:
    """Records that a claim was used with a public key (DER), and the certificate it got."""
    connection.execute(
        update(claims)
        .where(claims.c.secret_hash == secret_hash)
        .values(used_at_ms=now_ms, public_key=public_key, leaf_der=leaf_der)
    )


def add_certificate(
    connection: Connection, client_id: str, serial: str, now_ms: int, not_after_ms: int
) -> None:
    """Records a certificate that was signed for a client."""
    connection.execute(
        insert(certificates).values(
            serial=serial, client_id=client_id, issued_at_ms=now_ms, not_after_ms=not_after_ms
        )
    )


def enroll(connection: Connection, client_id: str, now_ms: int) -> None:
    """Records that a client has its certificate."""
    values = {"state": ENROLLED, "enrolled_at_ms": now_ms, "revoked_reason": ""}
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(values))


def resolve(connection: Connection, text: str) -> str | None:
    """The id of the client with this id or name; None when there is none."""
    if state_of(connection, text) not in {None, REMOVED}:
        return text
    mine = (clients.c.name == text) & (clients.c.state != REMOVED)
    return connection.scalar(select(clients.c.client_id).where(mine)) if text else None


def rename(connection: Connection, client_id: str, name: str) -> bool:
    """Gives a client a name for people, or takes it away (""); False if another client has that id or name."""
    if name and resolve(connection, name) not in {None, client_id}:
        return False
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(name=name))
    return True


def label(connection: Connection, client_id: str, labels: Mapping[str, str]) -> None:
    """Replaces a client's labels."""
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(labels=dict(labels)))


def remove(connection: Connection, client_id: str) -> None:
    """Forgets what is known of a revoked client; its certificates stay on the deny list until their end."""
    values = {"state": REMOVED, "labels": {}, "profile": {}, "name": "", "not_before_reason": ""}
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(values))


def certificates_of(connection: Connection, client_id: str) -> list[tuple[str, int, int, int]]:
    """Serial (hex), issue, end and revocation (0: not) of each certificate of a client, the newest first."""
    mine = certificates.c.client_id == client_id
    columns = (certificates.c.serial, certificates.c.issued_at_ms, certificates.c.not_after_ms)
    query = select(*columns, certificates.c.revoked_at_ms).where(mine)
    rows = connection.execute(query.order_by(certificates.c.issued_at_ms.desc()))
    return [(row.serial, row.issued_at_ms, row.not_after_ms, row.revoked_at_ms) for row in rows]


def revoke(connection: Connection, client_id: str, reason: str, now_ms: int) -> bool:
    """Revokes a client, its certificates and its open claims; False when there is no such client."""
    if state_of(connection, client_id) is None:
        return False
    values = {"state": REVOKED, "online": False, "revoked_reason": reason}
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(values))
    mine = (certificates.c.client_id == client_id) & (certificates.c.revoked_at_ms == 0)
    connection.execute(update(certificates).where(mine).values(revoked_at_ms=now_ms))
    unused = (claims.c.client_id == client_id) & (claims.c.used_at_ms == 0)
    connection.execute(update(claims).where(unused).values(expires_at_ms=0))
    return True


def void_claims(connection: Connection) -> None:
    """Ends every claim that was not used: after a restored back-up it may have been, without our knowing."""
    connection.execute(update(claims).where(claims.c.used_at_ms == 0).values(expires_at_ms=0))


def deny_list(connection: Connection, now_ms: int) -> frozenset[str]:
    """Serials (hex) of revoked certificates that would still be valid, those of operators too."""
    revoked = (certificates.c.revoked_at_ms > 0) & (certificates.c.not_after_ms > now_ms)
    found = frozenset(connection.scalars(select(certificates.c.serial).where(revoked)))
    return found | operators.denied(connection, now_ms)


def add_alarm(connection: Connection, what: str, client_id: str, source: str, now_ms: int) -> None:
    """Records that somebody tried what an operator should know."""
    connection.execute(insert(alarms).values(at_ms=now_ms, what=what, client_id=client_id, source=source))


def saw(connection: Connection, client_id: str, now_ms: int, *, online: bool | None = None) -> None:
    """Records a sign of life; `online` when it says so."""
    values: dict[str, Any] = {"last_seen_ms": now_ms}
    if online is not None:
        values["online"] = online
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(values))


def nobody_online(connection: Connection) -> None:
    """Forgets presence: after a broken connection to the broker only its retained messages say who is there."""
    connection.execute(update(clients).where(clients.c.online).values(online=False))


def set_profile(connection: Connection, client_id: str, profile: Mapping[str, Any], now_ms: int) -> None:
    """Records a device's newest status."""
    values = {
        "profile": dict(profile),
        "last_seen_ms": now_ms,
        "not_before_ms": profile["not_before_ms"],
        "not_before_reason": profile["not_before_reason"],
    }
    connection.execute(update(clients).where(clients.c.client_id == client_id).values(values))


def all_clients(connection: Connection) -> list[ClientRow]:
    """All clients by id."""
    ends: dict[str, int] = {}
    for row in connection.execute(select(certificates.c.client_id, certificates.c.not_after_ms)):
        ends[row.client_id] = max(ends.get(row.client_id, 0), row.not_after_ms)
    return [
        ClientRow(
            client_id=row.client_id,
            state=row.state,
            labels=row.labels,
            enrolled_at_ms=row.enrolled_at_ms,
            last_seen_ms=row.last_seen_ms,
            online=row.online,
            not_before_ms=row.not_before_ms,
            not_before_reason=row.not_before_reason,
            profile=row.profile,
            certificate_not_after_ms=ends.get(row.client_id, 0),
            name=row.name,
            revoked_reason=row.revoked_reason,
        )
        for row in connection.execute(
            select(clients).where(clients.c.state != REMOVED).order_by(clients.c.client_id)
        )
    ]
