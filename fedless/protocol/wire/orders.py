"""Orders to devices and their results: canonical JSON and protobuf <-> messages."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.wire.checks import TIME_MAX_MS, bounded, identifier, member, number, sized, within
from fedless.v1 import fleet_pb2

TIMEOUT_MAX_MS = 24 * 3_600_000
DETAIL_MAX = 500
TIMINGS_MAX = 32


def order_to_bytes(order: m.Order) -> bytes:
    """An order's canonical JSON: sorted keys, no spaces; its SHA-256 is the ticket's task digest."""
    return json.dumps(asdict(order), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def order_from_bytes(data: bytes) -> m.Order:
    """The order in canonical JSON; unknown fields are refused, since they cannot be obeyed."""
    bounded(data, m.ORDER_BYTES_MAX, "order")
    try:
        value: dict[str, Any] = json.loads(data)
        order = m.Order(**{**value, "action": m.Action(value["action"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        known = ", ".join(f.name for f in fields(m.Order))
        raise PeerError(
            Code.MALFORMED, f"Expected an order in JSON with the fields {known}.", fix="Update fedless here."
        ) from error
    for name, kind in (("function", str), ("timeout_ms", int)):
        if not isinstance(getattr(order, name), kind):
            raise PeerError(Code.MALFORMED, f"Expected {name} as {kind.__name__}.")
    within(order.timeout_ms, 0, TIMEOUT_MAX_MS, "timeout_ms")
    if order.action not in {m.Action.RENEW, m.Action.UPDATE}:
        identifier(order.function, "function")
    json_text(order.event, m.EVENT_BYTES_MAX, "event")
    return order


def json_text(text: object, most_bytes: int, name: str) -> str:
    """The text, if it is JSON of at most so many bytes."""
    if not isinstance(text, str):
        raise PeerError(Code.MALFORMED, f"Expected a JSON text in {name}.")
    bounded(text.encode("utf-8", "replace"), most_bytes, name)
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PeerError(Code.MALFORMED, f"Expected JSON in {name}.") from error
    return text


def order_reply_from_pb(message: fleet_pb2.OrderReply) -> tuple[bytes, int, int]:
    """An order's bytes, its deadline and the aggregator's clock, Unix ms."""
    order = bounded(message.order, m.ORDER_BYTES_MAX, "order")
    deadline = within(message.deadline_at_ms, 0, TIME_MAX_MS, "deadline_at_ms")
    return order, deadline, within(message.now_ms, 1, TIME_MAX_MS, "now_ms")


def order_result_to_pb(value: m.OrderResult) -> fleet_pb2.OrderResult:
    """What came of an order."""
    return fleet_pb2.OrderResult(**{**asdict(value), "answer": value.answer.encode()})


def order_result_from_pb(message: fleet_pb2.OrderResult) -> m.OrderResult:
    """What came of an order: an answer that is JSON and not too long, an outcome that has a name."""
    outcome = message.outcome
    if outcome != m.DONE:
        outcome = member(Code, outcome, "outcome").value
    try:
        answer = message.answer.decode()
    except UnicodeDecodeError as error:
        raise PeerError(Code.MALFORMED, "Expected UTF-8 in answer.") from error
    within(len(message.timings_ms), 0, TIMINGS_MAX, "number of timings")
    return m.OrderResult(
        order_id=within(message.order_id, 1, 2**63, "order_id"),
        nonce=sized(message.nonce, m.NONCE_BYTES, "nonce"),
        outcome=outcome,
        detail=message.detail[:DETAIL_MAX],
        answer=json_text(answer, m.ANSWER_BYTES_MAX, "answer") if answer else "",
        version=message.version,
        start=message.start[:8],
        timings_ms={
            name[:32]: number(ms, 0.0, 1e12, "timings_ms") for name, ms in message.timings_ms.items()
        },
        peak_rss_mb=number(message.peak_rss_mb, 0.0, 1e9, "peak_rss_mb"),
    )
