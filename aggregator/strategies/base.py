"""*Pure.* What every strategy is: a server's rule with its options and the vectors that it keeps from model to model.

A strategy is a frozen dataclass whose fields are its options (`[strategy_options]` of a task). It works block by
block on flat arrays, so that no model has to be in memory twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.staleness import Late
from fedless.protocol.messages import ClientRule

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Beside:
    """What a round tells beside its mean update.

    `extras`: the weighted mean of each further coordinate, by its name. `share`: the counted clients among all that
    could have been asked, above 0, at most 1.
    """

    extras: Mapping[str, float]
    share: float = 1.0


@dataclass(frozen=True)
class Strategy:
    """Adds the round's mean update to the model, and keeps nothing; rules differ from it in what they override."""

    @property
    def state(self) -> Mapping[str, float]:
        """The vectors float32[P] that it keeps beside each model, by name, and the value they begin with."""
        return {}

    @property
    def late(self) -> Late | None:
        """How reports on older models are taken; None: they are refused."""
        return None

    def closes_at(self, wanted: int) -> int:
        """How many reports make a model, where late ones count as well, if the task wants so many in a round."""
        return wanted

    def wakes(self, wanted: int, busy: int) -> int:  # noqa: ARG002 - others look at it
        """How many clients are woken for a round then, while so many are still at work on older models."""
        return wanted

    @property
    def least_reports(self) -> int:
        """How many reports a round must have at least."""
        return 1

    def client(self, rule: ClientRule) -> ClientRule:
        """The task's client rule with what this strategy asks of it."""
        return rule

    def extras(self, rule: ClientRule, max_examples: int) -> Mapping[str, float]:  # noqa: ARG002 - others look at them
        """The further coordinates of the sum, by name, each with the largest value that one client may have."""
        return {}

    def scale(self, beside: Beside) -> Sequence[float]:  # noqa: ARG002 - others look at it
        """By what the mean of each of the update's vectors is multiplied before `step`; raises `ValueError`."""
        return (1.0,)

    @property
    def least_cohorts(self) -> int:
        """How many cohorts of a round in pairwise mode must be opened at least."""
        return 1

    def complaints(self, rule: ClientRule) -> list[str]:  # noqa: ARG002 - others look at it
        """What is wrong with its options and the task's client rule, in words; empty: nothing."""
        return []

    def step(self, model: Floats, mean: Doubles, state: Sequence[Floats]) -> tuple[Floats, Sequence[Floats]]:
        """A block of the next model and of its state, from the present ones and the mean update: n elements each.

        `state` and what is returned beside the model are in the order of `self.state`. Where an update has more than
        one vector (`ClientRule.vectors`), `mean` is float64[vectors, n].
        """
        return (model + mean).astype(np.float32), state
