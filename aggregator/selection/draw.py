"""*Pure.* What every selection knows: how many are wanted, randomness, and each client's past in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

RECENT = 10
"""Rounds of a client that its history tells one by one."""


@dataclass(frozen=True)
class Past:
    """One training round of a client, as the aggregator saw it.

    `missed`: it was lost, but not because the round had enough without it. `took_ms` is the time from its check-in to
    its report, or (`reported` is false) to when the round did without it; 0: never checked in. `examples` is what its
    report counted, `loss` the mean over them before its last steps; 0 where masks hide them.
    """

    number: int
    reported: bool
    missed: bool
    took_ms: int
    examples: int
    loss: float = 0.0


@dataclass(frozen=True)
class History:
    """A client in this run: how often it was selected, and its last rounds (at most `RECENT`), the newest first."""

    selected: int = 0
    recent: tuple[Past, ...] = ()


NOTHING = History()


@dataclass(frozen=True)
class Draw:
    """One drawing: `count` clients are wanted for training round `number`.

    `randomness` is 32 bytes; the same bytes and candidates give the same choice. `progress` is the share of the run's
    models that are made, 0 to 1. A client without an entry in `histories` was never selected in this run. `gains`: of
    each committed round so far, in order, its reports' examples times their mean loss, summed up; 0 under masks.
    """

    count: int
    randomness: bytes
    number: int = 1
    progress: float = 0.0
    histories: Mapping[str, History] = field(default_factory=dict)
    gains: Sequence[float] = ()

    def generator(self) -> np.random.Generator:
        """The drawing's stream of random numbers, from its beginning."""
        return np.random.default_rng(int.from_bytes(self.randomness))

    def history(self, client_id: str) -> History:
        """What is known of a client."""
        return self.histories.get(client_id, NOTHING)


def weighted_order(
    client_ids: Sequence[str], log_weights: Sequence[float], generator: np.random.Generator
) -> list[str]:
    """All clients, drawn one after another without replacement with probabilities in proportion to their weights.

    By exponential keys: Efraimidis & Spirakis, Weighted random sampling with a reservoir, 2006. Weights come as their
    logarithms, so that none is too large or too small.
    """
    keys = np.log(generator.standard_exponential(len(client_ids))) - np.asarray(log_weights, np.float64)
    return [client_ids[int(index)] for index in np.argsort(keys, kind="stable")]


def shuffled(client_ids: Sequence[str], generator: np.random.Generator) -> list[str]:
    """All clients in a random order."""
    return [client_ids[int(index)] for index in generator.permutation(len(client_ids))]
