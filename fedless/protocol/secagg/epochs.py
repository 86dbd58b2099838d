"""*Pure.* Numbers of a key epoch: threshold, cohorts, length, and when it ends.

The aggregator decides with these; the client checks the threshold with the same function.
"""

from __future__ import annotations

from enum import StrEnum

COHORT_MAX = 128
COHORT_TARGET = 100
SLOTS_MAX = 16
MINIMUM_COHORT = 8
SMALL_COHORT = 20
"""Under this many members a masked round still protects, but the sum says much: a warning is shown."""
ABANDONED_IN_A_ROW_MAX = 2
_COLLUSION_FROM = 10


class Trust(StrEnum):
    """What the members assume of the aggregator: it may lie, or it follows the protocol but looks."""

    CHEATING = "cheating-aggregator"
    CURIOUS = "honest-but-curious"


def colluders(n: int) -> int:
    """A: how many of `n` members may collude with the aggregator: a tenth, none below ten members."""
    return n // 10 if n >= _COLLUSION_FROM else 0


def honest_survivors(min_alive: int, n: int) -> int:
    """How many of at least `min_alive` survivors among `n` members add their noise: those that do not collude."""
    return max(0, min_alive - colluders(n))


def threshold(n: int, trust: Trust) -> int:
    """t: how many of `n` members must agree to open a sum.

    Against a cheating aggregator ceil((n + A/2) / 1.5): every sum that can be opened then holds at least
    half of the honest members. Against a curious one max(A + 1, ceil(n / 3)).
    """
    a = colluders(n)
    if trust is Trust.CHEATING:
        return -((2 * n + a) // -3)
    return max(a + 1, -(n // -3))


def cohort_sizes(n: int, target: int = COHORT_TARGET, least: int = 1) -> list[int]:
    """How a selection of `n` clients is split: about `target` each, never over 128, as equal as possible.

    None has fewer than `least`, as long as `n` is that many and 128 suffice.
    """
    count = max(-(n // -COHORT_MAX), min(round(n / target), n // least), 1)
    return [n // count + (1 if at < n % count else 0) for at in range(count)]


def next_slots(previous: int) -> int:
    """B of the next key epoch: 1 for the first (`previous` 0), then doubling up to 16."""
    return min(2 * previous, SLOTS_MAX) or 1


def is_over(*, next_slot: int, slots: int, present: int, t: int, abandoned_in_a_row: int) -> bool:
    """Whether no further slot of a key epoch is opened: used up, too few members left, or two abandoned."""
    return next_slot >= slots or present < t + 1 or abandoned_in_a_row >= ABANDONED_IN_A_ROW_MAX
