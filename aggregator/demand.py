"""*Pure.* What a run would ask, of whom, and what is taken for granted where nothing was measured: `plan.py`'s values.

Made by `planning.py` of the task, the bundle's manifest and the store; nothing in it is a guess but `Assumed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedless.protocol.errors import Code
from fedless.protocol.messages import Mode

PARTICIPANT_MB = 45
"""Resident memory of the participant beside the instance, before it holds a report (benchmarks/bench_starts.py)."""


@dataclass(frozen=True)
class Wanted:
    """A task and its bundle. `goal` reports of `woken` clients, `minimum` at least; `words` per report of `word_bytes`.

    `examples` 0: not stated. `peak_mb`: what the author's check measured (0: nothing); `memory_mb`: what the bundle's
    instance may use. `cohorts`: how many sums a round has. `vectors`: numbers of float32[`parameters`] that each
    model version keeps, itself included. `keeps`: clients must keep something from round to round.
    """

    name: str
    mode: Mode
    strategy: str
    rounds: int
    goal: int
    minimum: int
    woken: int
    parameters: int
    words: int
    word_bytes: int
    epochs: int
    batch: int
    bundle_bytes: int
    max_steps: int = 0
    peak_mb: int = 0
    memory_mb: int = 512
    vectors: int = 1
    wait_s: int = 0
    deadline_ms: int = 600_000
    grace: float = 1.5
    abandon_limit: int = 3
    key_epoch_slots: int = 1
    secagg_minimum: int = 0
    cohorts: int = 1
    least_cohorts: int = 1
    keeps: bool = False

    @property
    def model_bytes(self) -> int:
        """One model on the wire and on the disk."""
        return 4 * self.parameters

    @property
    def report_bytes(self) -> int:
        """One report on the wire and in the spool."""
        return self.words * self.word_bytes

    @property
    def needed(self) -> int:
        """How many clients a round must have at the very least."""
        masked = 0 if self.mode is Mode.PLAIN else self.secagg_minimum
        return max(self.minimum, masked)


@dataclass(frozen=True)
class Work:
    """One training round of one client, in ms: to its check-in, from there to its report, and of that the training.

    `run_ms` and `peak_mb` 0: it did not say. `same`: with the bundle that is wanted now.
    """

    wake_ms: int
    work_ms: int
    run_ms: float
    epochs: int
    same: bool
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Client:
    """One enrolled client. `asked` and `reported`: its last rounds. `memory_mb` 0: not told yet.

    A cloud function has a `platform`, and as its memory and time what it is deployed with.
    """

    client_id: str
    online: bool = False
    memory_mb: int = 0
    asked: int = 0
    reported: int = 0
    works: tuple[Work, ...] = ()
    resting: str = ""
    platform: str = ""
    timeout_ms: int = 0


@dataclass(frozen=True)
class Service:
    """The aggregator: median times of its own phases in this mode (ms; {}: none yet), its free disk (0: unknown)."""

    phases_ms: Mapping[str, float] = field(default_factory=dict)
    disk_free_bytes: int = 0


@dataclass(frozen=True)
class Assumed:
    """What is taken for granted where nothing was measured: `fedless plan --assume NAME=NUMBER` changes it.

    `examples` of a client; `examples_per_s` of one core in training; `wake_ms` until a client that is there checks in;
    `overhead_ms` for start, connection and report without the bytes; `mbit_per_s` of a client's link; `presence` of a
    client that is online, and `presence_offline` of one that is not: a share of rounds; `spread`: how much times vary
    (standard deviation of their logarithm); `add_mb_per_s`, `prg_mb_per_s`: the aggregator's addition and its masks.
    """

    examples: float = 500.0
    examples_per_s: float = 500.0
    wake_ms: float = 500.0
    overhead_ms: float = 1_000.0
    mbit_per_s: float = 20.0
    presence: float = 0.95
    presence_offline: float = 0.5
    spread: float = 0.3
    add_mb_per_s: float = 400.0
    prg_mb_per_s: float = 400.0


@dataclass(frozen=True)
class Refusal:
    """Why this run cannot work, and the nearest thing that can. `waits`: more clients may still come (`wait_s`)."""

    code: Code
    reason: str
    instead: str
    waits: bool = False
