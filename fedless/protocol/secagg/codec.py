"""*Pure.* Secure aggregation's messages and states as bytes: for the journal, the store and the wire.

Both sides call it. The encoding follows the dataclass, field by field, with nothing optional left out:

| type | bytes |
|---|---|
| int | 8, big-endian, without sign |
| bool | 1: 0 or 1 |
| float | 8, IEEE 754 binary64, big-endian |
| bytes, str, StrEnum | u32 big-endian length, then the bytes (UTF-8) |
| tuple of one type | u32 big-endian count, then each element |
| X or None | 1 byte 0, or 1 byte 1 and X |
| frozen dataclass | its fields in order |

Nothing here is hashed or signed: that is `messages.py`, over `crypto.info`.
"""

from __future__ import annotations

import struct
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fedless.protocol.errors import Code, PeerError

T = TypeVar("T")


def dumps(value: object) -> bytes:
    """A frozen dataclass as bytes. Raises `struct.error` for an int outside u64: a bug of ours."""
    out: list[bytes] = []
    _write(type(value), value, out)
    return b"".join(out)


def loads(kind: type[T], data: bytes) -> T:
    """The dataclass of type `kind` that `dumps` wrote.

    Raises `PeerError(MALFORMED)` for anything else: truncated, too long, a wrong tag, bad UTF-8.
    """
    reader = _Reader(data)
    try:
        value = _read(kind, reader)
    except (ValueError, struct.error) as error:
        raise PeerError(Code.MALFORMED, f"{kind.__name__}: cannot be read.") from error
    if reader.at != len(data):
        raise PeerError(Code.MALFORMED, f"{kind.__name__}: {len(data) - reader.at} bytes too many.")
    return value  # type: ignore[no-any-return]


def f64(value: float) -> bytes:
    """IEEE 754 binary64, big-endian, 8 bytes: how a float enters a hashed structure."""
    return struct.pack(">d", value)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise ValueError
        part = self.data[self.at : end]
        self.at = end
        return part

    def length(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def flag(self) -> bool:
        tag = self.take(1)[0]
        if tag > 1:
            raise ValueError
        return tag == 1


@cache
def _layout(kind: Any) -> tuple[tuple[str, Any], ...] | None:  # noqa: ANN401 - a type expression
    """A dataclass's fields with their types, else None. Types are few, and looking into one is dear: so kept."""
    if not is_dataclass(kind):
        return None
    hints = get_type_hints(kind)
    return tuple((item.name, hints[item.name]) for item in fields(kind))


@cache
def _element(kind: Any) -> Any:  # noqa: ANN401
    """X of `tuple[X, ...]`, else None."""
    return get_args(kind)[0] if get_origin(kind) is tuple else None


@cache
def _present(kind: Any) -> Any:  # noqa: ANN401 - a type expression
    """X of `X | None`, else None."""
    if get_origin(kind) is UnionType:
        return next(part for part in get_args(kind) if part is not NoneType)
    return None


def _write(kind: Any, value: Any, out: list[bytes]) -> None:  # noqa: ANN401
    optional = _present(kind)
    if optional is not None:
        out.append(b"\x00" if value is None else b"\x01")
        if value is not None:
            _write(optional, value, out)
    elif (element := _element(kind)) is not None:
        out.append(len(value).to_bytes(4, "big"))
        for each in value:
            _write(element, each, out)
    elif (layout := _layout(kind)) is not None:
        for name, inner in layout:
            _write(inner, getattr(value, name), out)
    else:
        out.append(_leaf(kind, value))


def _leaf(kind: Any, value: Any) -> bytes:  # noqa: ANN401
    if kind is bool:
        return b"\x01" if value else b"\x00"
    if kind is int:
        return struct.pack(">Q", value)
    if kind is float:
        return f64(value)
    data = value if kind is bytes else str(value).encode()
    return len(data).to_bytes(4, "big") + data


def _read(kind: Any, reader: _Reader) -> Any:  # noqa: ANN401
    optional = _present(kind)
    if optional is not None:
        return _read(optional, reader) if reader.flag() else None
    element = _element(kind)
    if element is not None:
        count = reader.length()
        if count > len(reader.data) - reader.at:
            raise ValueError
        return tuple(_read(element, reader) for _ in range(count))
    layout = _layout(kind)
    if layout is not None:
        return kind(**{name: _read(inner, reader) for name, inner in layout})
    return _read_leaf(kind, reader)


def _read_leaf(kind: Any, reader: _Reader) -> Any:  # noqa: ANN401
    if kind is bool:
        return reader.flag()
    if kind is int:
        return int.from_bytes(reader.take(8), "big")
    if kind is float:
        return struct.unpack(">d", reader.take(8))[0]
    data = reader.take(reader.length())
    if kind is bytes:
        return data
    return kind(data.decode()) if issubclass(kind, StrEnum) else data.decode()
