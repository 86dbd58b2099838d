"""Certificates of operators: who was given one or has called, and which are revoked. All times are Unix milliseconds.

The authority's holder signs them without this database, so one may be unknown here until its holder calls. Revoked
ones are part of the fleet's deny list (`fleet.deny_list`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, String, Table, Text, insert, select, update

from aggregator.store.schema import metadata

operators = Table(
    "operators",
    metadata,
    Column("serial", String(48), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("not_after_ms", BigInteger, nullable=False),
    Column("noted_at_ms", BigInteger, nullable=False),  # when it was given, or seen first
    Column("last_seen_ms", BigInteger, nullable=False, default=0),  # 0: never
    Column("revoked_at_ms", BigInteger, nullable=False, default=0),  # 0: not revoked
    Column("revoked_by", String(64), nullable=False, default=""),
    Column("revoked_reason", Text, nullable=False, default=""),
)


@dataclass(frozen=True)
class OperatorRow:
    """One certificate of an operator; `serial` in hex."""

    serial: str
    name: str
    not_after_ms: int
    noted_at_ms: int = 0
    last_seen_ms: int = 0
    revoked_at_ms: int = 0
    revoked_by: str = ""
    revoked_reason: str = ""


def note(connection: Connection, serial: str, name: str, not_after_ms: int, now_ms: int) -> None:
    """Records a certificate, if it is not known."""
    if connection.scalar(select(operators.c.serial).where(operators.c.serial == serial)) is None:
        connection.execute(
            insert(operators).values(serial=serial, name=name, not_after_ms=not_after_ms, noted_at_ms=now_ms)
        )


def saw(connection: Connection, serial: str, now_ms: int) -> None:
    """Records a call with a known certificate."""
    connection.execute(update(operators).where(operators.c.serial == serial).values(last_seen_ms=now_ms))


def every(connection: Connection) -> list[OperatorRow]:
    """All known certificates, by name, the newest first."""
    rows = connection.execute(select(operators).order_by(operators.c.name, operators.c.noted_at_ms.desc()))
    return [OperatorRow(*row) for row in rows]


def revoke(connection: Connection, serial: str, by: str, reason: str, now_ms: int) -> None:
    """Records that a known certificate counts no more; one that is revoked already keeps when and why."""
    open_ = (operators.c.serial == serial) & (operators.c.revoked_at_ms == 0)
    values = {"revoked_at_ms": now_ms, "revoked_by": by, "revoked_reason": reason}
    connection.execute(update(operators).where(open_).values(values))


def denied(connection: Connection, now_ms: int) -> frozenset[str]:
    """Serials (hex) of revoked certificates that would still be valid."""
    revoked = (operators.c.revoked_at_ms > 0) & (operators.c.not_after_ms > now_ms)
    return frozenset(connection.scalars(select(operators.c.serial).where(revoked)))
