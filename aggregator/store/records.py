"""What the store tells about runs: plain values for the command line, the dashboard and the drivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aggregator.members import Phase
from aggregator.strategies.scaffold import CONTROL
from fedless.protocol.crypto import start_digest
from fedless.protocol.messages import Kind


class RunState(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    PAUSED = "paused"  # no new round is opened until somebody resumes it
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


GOING_ON = (RunState.RUNNING, RunState.PAUSED)
"""States of runs that have not ended."""


@dataclass(frozen=True)
class RoundInfo:
    """One training round of a run; times in Unix ms (0: not yet), `losses` counts lost clients by name."""

    round_id: int
    number: int
    state: str
    reason: str
    mode: str
    selected: int
    checked_in: int
    reported: int
    examples: int
    opened_at_ms: int
    ended_at_ms: int
    metrics: Mapping[str, float]
    phases_ms: Mapping[str, float]
    losses: Mapping[str, int]
    bytes_down: int
    bytes_up: int

    @property
    def dropouts(self) -> int:
        """Clients that checked in and did not report in time."""
        return self.checked_in - self.reported


@dataclass(frozen=True)
class RunInfo:
    """One run; `model_digest` names the newest model's blob."""

    run_id: str
    task_name: str
    state: RunState
    reason: str
    rounds_wanted: int
    model_version: int
    model_digest: bytes
    started_at_ms: int
    ended_at_ms: int
    rounds: tuple[RoundInfo, ...]


@dataclass(frozen=True)
class RunEvent:
    """One line of a run's history; `sequence` counts from 1 without gaps."""

    sequence: int
    at_ms: int
    event: str
    round_id: int
    client_id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run's driver needs; `settings` is the task file's text, `task` what clients get."""

    run_id: str
    settings: str
    task: bytes
    bundle_digest: bytes
    test_set_digest: bytes
    state: RunState


@dataclass(frozen=True)
class ModelRecord:
    """One version of a run's model; `state` are the digests of what its strategy keeps beside it, by name."""

    version: int
    digest: bytes
    round_id: int
    state: Mapping[str, bytes] = field(default_factory=dict)

    def control(self, kind: Kind) -> bytes:
        """The digest of the control variate that clients need for a round of this kind; empty: none, or zeros."""
        return self.state.get(CONTROL, b"") if kind is Kind.TRAIN else b""

    def start(self, kind: Kind) -> bytes:
        """The digest of what a masked round's clients start from."""
        return start_digest(self.digest, self.control(kind))


@dataclass(frozen=True)
class Invocation:
    """What one client's invocation reported of itself (`messages.InvocationMetrics`, as JSON values)."""

    client_id: str
    round_id: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """Where a round is, and what is known of it."""

    round_id: int
    phase: Phase
    reason: str
    metrics: Mapping[str, float]
