"""How many reports the next round wants, how many are enough, and how many clients are woken for them."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.strategies.base import Strategy
from aggregator.tasks import CohortSettings


@dataclass(frozen=True)
class Wanted:
    """`goal` reports close the round, `minimum` are enough, `wake` clients are drawn; `at_hand` must be, to begin."""

    goal: int
    minimum: int
    wake: int
    at_hand: int


def wanted(cohort: CohortSettings, strategy: Strategy, at_hand: int, busy: int, least: int = 0) -> Wanted:
    """For a round with so many clients at hand, while so many are still at work on older models.

    In an asynchronous run those are in the round already, and what its strategy waits for is enough. A masked round
    does not begin with fewer than `least`.
    """
    size = cohort.goal(at_hand + busy)
    if strategy.late is None or not strategy.late.counts:
        minimum = cohort.minimum(size)
        return Wanted(size, minimum, cohort.selected(size), max(minimum, least))
    goal = strategy.closes_at(size)
    minimum = min(cohort.minimum_reports or goal, goal)
    return Wanted(goal, minimum, strategy.wakes(size, busy), max(0, minimum - busy))
