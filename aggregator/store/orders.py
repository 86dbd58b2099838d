"""Functions on devices: pushed bundles by name and version, orders to devices, and what came of them.

Functions on a connection, for one transaction each. All times are Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    LargeBinary,
    Row,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from aggregator.store.schema import Json, metadata
from fedless.protocol.messages import OrderResult

KEPT = 1000
"""Orders; older ones are forgotten with their answers."""

bundles = Table(
    "bundles",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("given_up", Boolean, nullable=False, default=False),
    Column("pushed_at_ms", BigInteger, nullable=False),
)

orders = Table(
    "orders",
    metadata,
    Column("order_id", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", LargeBinary(16), nullable=False, unique=True),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("action", String(16), nullable=False),
    Column("function", String(64), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("bundle_digest", LargeBinary(32), nullable=False),  # zeros: the order needs none
    Column("body", LargeBinary, nullable=False),  # what clients get, byte for byte
    Column("given_at_ms", BigInteger, nullable=False),
    Column("deadline_at_ms", BigInteger, nullable=False),
)

answers = Table(
    "order_answers",
    metadata,
    Column("order_id", ForeignKey("orders.order_id"), primary_key=True),
    Column("client_id", String(64), primary_key=True),
    Column("nonce", LargeBinary(16), nullable=False),
    Column("outcome", String(64), nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
    Column("answer", Text, nullable=False, default=""),
    Column("version", BigInteger, nullable=False, default=0),
    Column("start", String(8), nullable=False, default=""),
    Column("timings_ms", Json, nullable=False, default=dict),
    Column("peak_rss_mb", Float, nullable=False, default=0.0),
    Column("settled_at_ms", BigInteger, nullable=False, default=0),
)


@dataclass(frozen=True)
class BundleRow:
    """One pushed version of a function."""

    name: str
    version: int
    digest: bytes
    given_up: bool
    pushed_at_ms: int


@dataclass(frozen=True)
class OrderRow:
    """An order; `clients` and `settled` are counts."""

    order_id: int
    action: str
    function: str
    version: int
    bundle_digest: bytes
    body: bytes = field(repr=False)
    given_at_ms: int
    deadline_at_ms: int
    clients: int
    settled: int


@dataclass(frozen=True)
class AnswerRow:
    """One client's part in an order: `outcome` empty until it has answered."""

    client_id: str
    result: OrderResult
    settled_at_ms: int


def add_bundle(connection: Connection, name: str, version: int, digest: bytes, now_ms: int) -> None:
    """Records a pushed version."""
    connection.execute(insert(bundles).values(name=name, version=version, digest=digest, pushed_at_ms=now_ms))


def versions(connection: Connection, name: str = "") -> list[BundleRow]:
    """Of one function or of all, by name, the newest first."""
    query = select(bundles).order_by(bundles.c.name, bundles.c.version.desc())
    if name:
        query = query.where(bundles.c.name == name)
    return [BundleRow(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name


def give_up(connection: Connection, name: str, version: int) -> None:
    """Records that a version is not to run any more."""
    mine = (bundles.c.name == name) & (bundles.c.version == version)
    connection.execute(update(bundles).where(mine).values(given_up=True))


def add(connection: Connection, values: Mapping[str, Any], nonces: Mapping[str, bytes]) -> int:
    """Records an order to clients, each with its nonce; its id. Orders beyond `KEPT` are forgotten.

    Ids rise, and are at least the Unix time in seconds: a restored database has older ones than were given since.
    """
    last = connection.scalar(select(func.max(orders.c.order_id))) or 0
    order_id = max(int(last) + 1, int(values["given_at_ms"]) // 1000)
    connection.execute(insert(orders).values(order_id=order_id, **values))
    connection.execute(
        insert(answers),
        [{"order_id": order_id, "client_id": client, "nonce": nonce} for client, nonce in nonces.items()],
    )
    old = select(orders.c.order_id).order_by(orders.c.order_id.desc()).offset(KEPT).limit(KEPT)
    gone = list(connection.scalars(old))
    for table in (answers, orders):
        connection.execute(delete(table).where(table.c.order_id.in_(gone)))
    return order_id


def by_request(connection: Connection, request_id: bytes) -> tuple[int, bytes] | None:
    """The order that was given for a request, and the request's digest."""
    mine = orders.c.request_id == request_id
    row = connection.execute(select(orders.c.order_id, orders.c.request_sha256).where(mine)).first()
    return None if row is None else (row.order_id, row.request_sha256)


def load(connection: Connection, order_id: int) -> OrderRow | None:
    """One order."""
    found = _rows(connection, orders.c.order_id == order_id)
    return found[0] if found else None


def every(connection: Connection) -> list[OrderRow]:
    """All that are kept, the newest first."""
    return _rows(connection, orders.c.order_id > 0)


def unsettled(connection: Connection, now_ms: int) -> list[tuple[int, str]]:
    """Orders that are still good, with each client that has not answered."""
    query = (
        select(answers.c.order_id, answers.c.client_id)
        .join(orders, orders.c.order_id == answers.c.order_id)
        .where((orders.c.deadline_at_ms > now_ms) & (answers.c.outcome == ""))
    )
    return [(row.order_id, row.client_id) for row in connection.execute(query)]


def part(connection: Connection, order_id: int, client_id: str) -> AnswerRow | None:
    """One client's part in an order; None if it has none."""
    mine = (answers.c.order_id == order_id) & (answers.c.client_id == client_id)
    row = connection.execute(select(answers).where(mine)).first()
    return None if row is None else _answer(row)


def parts(connection: Connection, order_id: int, after: str, most: int) -> Sequence[AnswerRow]:
    """The parts of clients behind `after` in the order of their ids."""
    mine = (answers.c.order_id == order_id) & (answers.c.client_id > after)
    query = select(answers).where(mine).order_by(answers.c.client_id).limit(most)
    return [_answer(row) for row in connection.execute(query)]


def settle(connection: Connection, client_id: str, result: OrderResult, now_ms: int) -> None:
    """Records what came of an order at one client."""
    mine = (answers.c.order_id == result.order_id) & (answers.c.client_id == client_id)
    values = {
        "outcome": result.outcome,
        "detail": result.detail,
        "answer": result.answer,
        "version": result.version,
        "start": result.start,
        "timings_ms": dict(result.timings_ms),
        "peak_rss_mb": result.peak_rss_mb,
        "settled_at_ms": now_ms,
    }
    connection.execute(update(answers).where(mine).values(values))


def _rows(connection: Connection, which: Any) -> list[OrderRow]:  # noqa: ANN401 - a condition of SQLAlchemy
    counts = select(
        answers.c.order_id,
        func.count().label("clients"),
        func.count().filter(answers.c.outcome != "").label("settled"),
    ).group_by(answers.c.order_id)
    counted = counts.subquery()
    query = (
        select(orders, counted.c.clients, counted.c.settled)
        .join(counted, counted.c.order_id == orders.c.order_id)
        .where(which)
        .order_by(orders.c.order_id.desc())
    )
    return [
        OrderRow(
            row.order_id, row.action, row.function, row.version, row.bundle_digest, row.body,
            row.given_at_ms, row.deadline_at_ms, row.clients, row.settled,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def _answer(row: Row[Any]) -> AnswerRow:
    result = OrderResult(
        row.order_id, row.nonce, row.outcome, row.detail, row.answer, row.version, row.start,
        row.timings_ms, row.peak_rss_mb,
    )  # fmt: skip
    return AnswerRow(row.client_id, result, row.settled_at_ms)
