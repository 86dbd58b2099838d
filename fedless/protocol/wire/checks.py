"""Checks of the border: each raises `PeerError` and says what was expected in which field."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError

TIME_MAX_MS = 2**53
ENDPOINTS_MAX = 8


def parse(kind: Any, data: bytes, code: Code) -> Any:  # noqa: ANN401 - generated classes share no typed factory
    """The message in bytes; `code` says what to call it when it cannot be read."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise PeerError(code, f"Expected a {kind.DESCRIPTOR.name} in protobuf.") from error


def sized(value: bytes, size: int, name: str) -> bytes:
    """The bytes, if there are exactly `size` of them."""
    if len(value) != size:
        raise PeerError(Code.MALFORMED, f"Expected {size} bytes in {name}, found {len(value)}.")
    return value


def optional(value: bytes, size: int, name: str) -> bytes:
    """The bytes, if there are none or exactly `size` of them."""
    return sized(value, size, name) if value else b""


def bounded(value: bytes, most: int, name: str) -> bytes:
    """The bytes, if there are at most `most` of them."""
    if len(value) > most:
        raise PeerError(Code.MALFORMED, f"Expected at most {most} bytes in {name}, found {len(value)}.")
    return value


def identifier(value: str, name: str) -> str:
    """The text, if it is an id (1-64 characters of a-z, 0-9 and -)."""
    if not m.ID.fullmatch(value):
        raise PeerError(
            Code.MALFORMED, f"Expected an id of 1 to 64 characters of a-z, 0-9 and '-' in {name}."
        )
    return value


def within(value: int, low: int, high: int, name: str, code: Code = Code.MALFORMED) -> int:
    """The integer, if it is from `low` to `high`, both included."""
    if not low <= value <= high:
        raise PeerError(code, f"Expected {low} to {high} in {name}, found {str(value)[:40]}.")
    return value


def number(value: float, low: float, high: float, name: str) -> float:
    """The number, if it is from `low` to `high`; NaN never is."""
    if not low <= value <= high:
        raise PeerError(Code.MALFORMED, f"Expected {low:g} to {high:g} in {name}, found {str(value)[:40]}.")
    return value


def member(kind: Any, value: object, name: str) -> Any:  # noqa: ANN401 - the enum's own type
    """The member of an enum with this value."""
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise PeerError(
            Code.MALFORMED, f"Expected one of {known} in {name}, found {str(value)[:40]!r}."
        ) from error


def addresses(values: Any, name: str) -> tuple[str, ...]:  # noqa: ANN401 - protobuf's repeated container has no public type
    """At most eight texts of the form host:port."""
    within(len(values), 0, ENDPOINTS_MAX, f"number of {name}")
    for value in values:
        host, _, port = value.rpartition(":")
        if not host or len(value) > 262 or not port.isdigit() or not 0 < int(port) < 2**16:  # noqa: PLR2004
            raise PeerError(Code.MALFORMED, f"Expected host:port in {name}.")
    return tuple(values)
