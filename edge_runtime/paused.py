"""*Pure.* A local training between two steps, as bytes: so that a later invocation goes on where this one stopped.

Called by `loops`, in the instance. What comes out of a training that was interrupted any number of times is, bit for
bit, what comes out of one that was not: weights, moments, the position in the local epoch and both random generators
are in it. Layout: u32 big-endian length, so many bytes of JSON, then raw little-endian float32 vectors of P each: the
weights, then the optimiser's moments.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.optimizers import Vector
from fedless.protocol.errors import Code, LocalError

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Paused:
    """After `steps` optimiser steps. `loss_sum` over `seen` examples of the present local epoch.

    `order`: the state of the generator that shuffles, before it shuffled the local epoch that the next step is of;
    `noise`: that of the generator of dropout masks.
    """

    steps: int
    loss_sum: float
    seen: int
    order: Mapping[str, Any]
    noise: Mapping[str, Any]
    weights: Vector
    moments: Sequence[Vector]

    def to_bytes(self) -> bytearray:
        """As the module's head says."""
        head = {
            "steps": self.steps,
            "loss_sum": self.loss_sum,
            "seen": self.seen,
            "order": self.order,
            "noise": self.noise,
        }
        text = json.dumps(head, separators=(",", ":")).encode()
        data = bytearray(_LENGTH.pack(len(text)) + text)
        for vector in (self.weights, *self.moments):
            data += np.ascontiguousarray(vector, "<f4").data.cast("B")
        return data


def from_bytes(data: bytes, parameters: int, moments: int) -> Paused:
    """What `to_bytes` wrote for so many parameters and moments. Raises `LocalError(STATE_CORRUPT)`."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        at = _LENGTH.size + length
        if len(data) - at != 4 * parameters * (1 + moments):
            raise ValueError  # noqa: TRY301 - one border for all mistakes
        vectors = np.frombuffer(data, "<f4", offset=at).reshape(1 + moments, parameters).astype(np.float32)
        return Paused(
            steps=int(head["steps"]),
            loss_sum=float(head["loss_sum"]),
            seen=int(head["seen"]),
            order=dict(head["order"]),
            noise=dict(head["noise"]),
            weights=vectors[0],
            moments=list(vectors[1:]),
        )
    except (struct.error, KeyError, TypeError, ValueError) as error:
        detail = "The state of an interrupted training cannot be read, or is of another task."
        raise LocalError(
            Code.STATE_CORRUPT, detail, fix="Remove it; the training then begins anew."
        ) from error
