"""Messages as JSON and back."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np


def to_json(value: Any) -> Any:
    """A message as JSON: bytes as hex, dataclasses as objects."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [to_json(element) for element in value]
    if isinstance(value, dict):
        return {str(name): to_json(element) for name, element in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.value if isinstance(value, StrEnum) else value


def from_json(kind: Any, value: Any) -> Any:
    """The message of type `kind` that `to_json` wrote."""
    if get_origin(kind) is UnionType:
        inner = next(part for part in get_args(kind) if part is not NoneType)
        return None if value is None else from_json(inner, value)
    if get_origin(kind) is tuple:
        return tuple(from_json(get_args(kind)[0], element) for element in value)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: from_json(hints[name], element) for name, element in value.items()})  # type: ignore[operator]
    if kind is bytes:
        return bytes.fromhex(value)
    return kind(value)
