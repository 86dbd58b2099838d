"""*Pure.* A client's own part of the parameter vector: put into a model, taken out of an update, trained in turn.

Called by `loops` and `trainer` in the instance, and by `heads`, which keeps it; the words are
`fedless.protocol.layout`'s. A head is float32[own]: the personal elements in the vector's order. As bytes: u32
big-endian length, so many bytes of JSON {"bundle", "parameters", "personal"}, then raw little-endian float32[own].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import numpy as np

from edge_runtime.optimizers import LocalOptimizer, Vector
from fedless.protocol.client_rule import ClientRule
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.layout import Layout, Range, complaint

_LENGTH = struct.Struct(">I")


def to_bytes(bundle: str, layout: Layout, head: Vector) -> bytes:
    """A head with what it is of: a bundle's digest (hex) and a layout."""
    told = {"bundle": bundle, "parameters": layout.parameters, "personal": layout.personal}
    text = json.dumps(told, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text + np.ascontiguousarray(head, "<f4").tobytes()


def from_bytes(data: bytes) -> tuple[str, Layout, Vector]:
    """What `to_bytes` wrote. Raises `LocalError(STATE_CORRUPT)`."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        at = _LENGTH.size + length
        told = json.loads(data[_LENGTH.size : at])
        layout = Layout(told["parameters"], tuple((int(low), int(size)) for low, size in told["personal"]))
        if len(data) != at + 4 * layout.own or complaint(layout):
            raise ValueError  # noqa: TRY301 - one border for all mistakes
        return str(told["bundle"]), layout, np.frombuffer(data, "<f4", offset=at).astype(np.float32)
    except (struct.error, KeyError, TypeError, ValueError) as error:
        detail = "A file of personal parameters is damaged."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Remove it; they then begin anew.") from error


def taken(vector: Vector, ranges: Sequence[Range]) -> Vector:
    """A copy of these ranges of float32[P], one behind the other."""
    return np.concatenate([vector[at : at + size] for at, size in ranges])


def with_head(vector: Vector, layout: Layout, head: Vector) -> Vector:
    """A copy of float32[P] with the personal elements of float32[own]."""
    whole, start = vector.copy(), 0
    for at, size in layout.personal:
        whole[at : at + size] = head[start : start + size]
        start += size
    return whole


def put_in(model: bytearray, layout: Layout, data: bytes) -> None:
    """The personal elements of `to_bytes`' data into raw float32[P]. Raises `LocalError(STATE_CORRUPT)`."""
    _, of, head = from_bytes(data)
    if of != layout:
        raise LocalError(Code.STATE_CORRUPT, "These personal parameters are of another task.")
    start, numbers = 0, np.ascontiguousarray(head, "<f4")
    for at, size in layout.personal:
        model[4 * at : 4 * (at + size)] = numbers[start : start + size].tobytes()
        start += size


class Alternating(LocalOptimizer):
    """First `first` steps of the personal elements with the shared ones held, then the shared ones with these held.

    Collins et al. 2021 (FedRep), algorithm 1; FedAlt of Pillutla et al. 2022. Each part begins without moments.
    """

    def __init__(self, rule: ClientRule, start: Vector, layout: Layout, first: int) -> None:
        super().__init__(rule, start)
        self._layout = layout
        self._first = first
        self._made = 0

    def step(self, weights: Vector, gradient: Vector) -> None:
        """As `LocalOptimizer.step`, of one part."""
        if self._made == self._first:
            self.go_on(0, [np.zeros_like(moment) for moment in self.moments])
        held = self._layout.shared if self._made < self._first else self._layout.personal
        kept = [weights[at : at + size].copy() for at, size in held]
        for at, size in held:
            gradient[at : at + size] = 0.0
        super().step(weights, gradient)
        for (at, size), values in zip(held, kept, strict=True):
            weights[at : at + size] = values
        self._made += 1
