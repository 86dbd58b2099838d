"""*Pure.* What the participant and an instance say to each other over their socketpair.

One job goes in, events come out, the last event is `done` (followed by `payload_bytes` raw bytes) or
`failed`. Every frame is a u32 big-endian length and that many bytes of JSON. `instance` is the participant's
end, `trainer` the instance's. A place may go in first: what is known of a job before the aggregator has said more of
it, so that the instance reads its data and loads its graph meanwhile.

========== =====================================================================================
event      fields
========== =====================================================================================
ready      monotonic_ms: the imports are done, the instance waits for its job
started    monotonic_ms: the job has arrived
first_step monotonic_ms, wall_ms: the first optimiser step is complete
progress   epoch (from 1), step, of, loss (mean of the batch)
done       examples, steps, sums {name: number}, shape, timings_ms {name: ms}, peak_rss_mb, payload_bytes, unfinished
failed     code, detail, fix
========== =====================================================================================
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from fedless.protocol.client_rule import ClientRule, Optimizer
from fedless.protocol.layout import Range

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 1 << 20


class JobKind(StrEnum):
    """What an instance does: one of three things with the bundle's graph, or it calls the author's own entry."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    INFER = "infer"
    INVOKE = "invoke"


class Part(StrEnum):
    """Which of the client's examples a job uses; `holdout` says how large the held-out part is."""

    ALL = "all"
    TRAINING = "training"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Place:
    """Where a job will be done: those of its fields that a device knows by itself, as `Job` has them."""

    kind: JobKind
    function_dir: str
    data: Mapping[str, object]
    threads: int = 1
    memory_mb: int = 0
    confinement: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As JSON values, told from a job by its one key."""
        return {"place": asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Place:
        """The place that `to_json` wrote under that key."""
        return cls(**{**values, "kind": JobKind(values["kind"])})


@dataclass(frozen=True)
class Job:
    """One invocation of a function.

    `function_dir` holds the unpacked bundle, `parameters` is a file of raw little-endian float32[P], `data`
    is a data source as `edge_runtime.data.DataSource` reads it (relative paths start at the working
    directory). `holdout` is the fraction of examples that is never trained on. `memory_mb` bounds the
    instance's private memory (0: the manifest's figure). `threads` is for the runtime. `event` is
    what the author's entry is called with, or the inputs to infer from. `confinement` has the fields of
    `confine.Confinement` (empty: only the memory is bounded). `timeout_ms` is filled in when it is sent.
    `control` and `own_control` are files as `parameters`: the fleet's control variate and this client's (empty: 0).
    A training that is not done `stop_after_ms` after it began (0: never) stops between two steps, and gives its state
    instead of an update; `state` is the file of such a state, to go on from (empty: from the beginning).
    `personal` are the ranges of the vector that are this client's own, `head` the file of its elements there (`heads`;
    empty: the model's).
    """

    kind: JobKind
    function_dir: str
    parameters: str
    data: Mapping[str, object]
    rule: ClientRule = field(default_factory=ClientRule)
    part: Part = Part.ALL
    holdout: float = 0.0
    threads: int = 1
    memory_mb: int = 0
    event: object = None
    confinement: Mapping[str, Any] = field(default_factory=dict)
    timeout_ms: int = 0
    control: str = ""
    own_control: str = ""
    stop_after_ms: int = 0
    state: str = ""
    personal: tuple[Range, ...] = ()
    head: str = ""

    @property
    def place(self) -> Place:
        """What of it may be told before the rest."""
        return Place(self.kind, self.function_dir, self.data, self.threads, self.memory_mb, self.confinement)

    @property
    def files(self) -> tuple[str, str, str, str, str]:
        """The files that travel as open descriptors; empty: not there."""
        return self.parameters, self.control, self.own_control, self.state, self.head

    def to_json(self) -> dict[str, object]:
        """The job as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Job:
        """The job that `to_json` wrote. It comes from our own parent process, so a mistake is a TypeError."""
        fields: dict[str, Any] = dict(values)
        rule = dict(fields.pop("rule"))
        rule["optimizer"] = Optimizer(rule["optimizer"])
        fields["kind"], fields["part"] = JobKind(fields["kind"]), Part(fields["part"])
        fields["personal"] = tuple((low, size) for low, size in fields["personal"])
        return cls(rule=ClientRule(**rule), **fields)


@dataclass(frozen=True)
class Outcome:
    """What one finished job gave.

    `payload` is raw little-endian float32: the update after `train` (`rules` may put a second one behind it; of a model
    with personal parameters it has the shared ones, and behind it all is the new head, which is not reported), the
    outputs after `infer` (`shape` says how), empty after `evaluate`, the answer as JSON after `invoke`. `examples`
    counts distinct examples, `steps` those of the optimiser, `sums` are over the examples (`loss`, `correct`,
    ...; after `train`: of the last local epoch, before each step). `unfinished`: the training stopped for want of time,
    and the payload is its state.
    """

    examples: int
    steps: int
    sums: Mapping[str, float]
    timings_ms: Mapping[str, float]
    peak_rss_mb: float
    first_step_wall_ms: int = 0
    shape: tuple[int, ...] = ()
    payload: bytes | bytearray = field(default=b"", repr=False)
    unfinished: bool = False


def frame(values: Mapping[str, object]) -> bytes:
    """One message, framed."""
    body = json.dumps(values, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body
