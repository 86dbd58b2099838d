"""What the drivers of runs work with; made at one place, the service's start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aggregator.blobs import Blobs
from aggregator.coordinator import Coordinator
from aggregator.evaluation import Judge
from aggregator.interfaces import Clock, Fleet, Random, Sleep
from aggregator.masked import MaskedMode
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from fedless.protocol.messages import Mode


@dataclass(frozen=True)
class Means:
    """What a driver works with; `on_step` hears the run's id after each entry in its log."""

    database: Database
    blobs: Blobs
    coordinator: Coordinator
    tickets: Tickets
    fleet: Fleet
    evaluator: Judge
    clock: Clock
    sleep: Sleep
    random: Random
    on_step: Callable[[str], None]
    masked: Mapping[Mode, MaskedMode] = field(default_factory=dict)
