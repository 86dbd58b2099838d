"""*Pure.* What a report on an older model is worth; called by the round's automaton and declared by strategies.

Rounds go on one after another; a client that is still at work when its round closes may be counted in a later one.
How far behind its model may be then, and how much it weighs, is a strategy's to say (`Late`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Weighing(StrEnum):
    """How the weight of an update falls with the age of the model that it was made from."""

    ROOT = "root"  # 1 / sqrt(1 + s), s versions behind: Nguyen et al. 2022 (FedBuff); Chadha et al. 2024 (Apodotiko)
    SHARE = "share"  # (t_k + 1) / (t + 1), of version t_k in version t's round: Elzohairy et al. 2022 (FedLesScan)


@dataclass(frozen=True)
class Late:
    """How reports on older models are taken.

    At most `tolerance` versions behind. `counts`: they count towards the round's goal and minimum, which makes a run
    asynchronous; else they are added to what the round's own cohort reports. `renormalised`: weights are divided by
    their own sum; else by the sum of what they would be without age, so that a stale round makes a shorter step.
    """

    tolerance: int
    weighing: Weighing
    counts: bool
    renormalised: bool


def factor(late: Late, version: int, base: int) -> float:
    """The weight of an update of model `base` in a round on model `version`, 1 where both are the same."""
    if late.weighing is Weighing.ROOT:
        return 1.0 / math.sqrt(1 + version - base)
    return (base + 1) / (version + 1)
