"""*Pure.* Oort: Lai et al., Oort: Efficient Federated Learning via Guided Participant Selection, 2021.

A client's utility is statistical times systemic: its examples times its training loss, plus a bonus that grows with the
rounds since it last took part (algorithm 1, line 14), times (T / t)^alpha where it takes longer than T. A part of each
cohort, 0.9 at first and 0.98 of that with each round down to 0.2, explores clients that were never asked; the others
are drawn in proportion to their utility among those of at least 95 % of the last wanted one's. Utilities above the
95th percentile count as that; who was asked more than `PARTICIPATIONS` times comes last.

The pacer (algorithm 1, lines 5 to 8) makes T longer by a step when the utility that the last `WINDOW` rounds gathered
is less than that of the window before: then the fast clients have little left to tell, and slower ones are worth their
time.

Three points are our own. The paper takes the root of the mean squared loss of single examples; reports tell the mean
loss, which stands for it. T is a percentile of the known training times, so that it means the same for clients of
seconds and of hours: the median at first, `PACE` further with each step. And who missed its last round waits until the
others are too few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw, History, Past, shuffled, weighted_order

EXPLORE, EXPLORE_DECAY, EXPLORE_MIN = 0.9, 0.98, 0.2
CUT_OFF = 0.95
PERCENTILE = 95.0
ALPHA = 2.0
PARTICIPATIONS = 10
WINDOW = 20
BEGIN, PACE, END = 50.0, 5.0, 100.0
"""Percentiles of the training times: T at first, the pacer's step, and the longest T."""


def oort(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """The ids of `draw.count` candidates (or all, if fewer), without repetition, sorted."""
    generator = draw.generator()
    order = shuffled([record.client_id for record in candidates], generator)
    new = [client_id for client_id in order if not draw.history(client_id).selected]
    known = [client_id for client_id in order if draw.history(client_id).selected]
    last = [client_id for client_id in known if waits(draw.history(client_id))]
    ready = [client_id for client_id in known if not waits(draw.history(client_id))]
    explored = min(len(new), max(round(draw.count * share_of_new(draw.number)), draw.count - len(ready)))
    exploited = _exploit(ready, draw, draw.count - explored, generator)
    rest = [*new[explored:], *(c for c in ready if c not in set(exploited)), *last]
    return sorted([*new[:explored], *exploited, *rest][: draw.count])


def share_of_new(number: int) -> float:
    """Which share of round `number`'s cohort explores."""
    return max(EXPLORE_MIN, EXPLORE * EXPLORE_DECAY ** (number - 1))


def waits(history: History) -> bool:
    """Whether a client is asked only where the others are too few."""
    return history.selected > PARTICIPATIONS or history.recent[0].missed


def pace(gains: Sequence[float]) -> float:
    """The percentile of training times that T is, after rounds that gathered these utilities, the oldest first."""
    windows = [sum(gains[at : at + WINDOW]) for at in range(0, len(gains) - WINDOW + 1, WINDOW)]
    steps = sum(later < earlier for earlier, later in pairwise(windows))
    return min(END, BEGIN + PACE * steps)


def utilities(histories: Sequence[History], number: int, gains: Sequence[float] = ()) -> list[float]:
    """Each client's utility, above 0, for round `number`, behind rounds that gathered `gains`."""
    newest = [_last_counted(history) for history in histories]
    times = [past.took_ms for past in newest if past is not None]
    preferred = float(np.percentile(times, pace(gains))) if times else 1.0
    statistical = np.array([_statistical(past) for past in newest])
    if len(statistical):
        statistical = np.minimum(statistical, np.percentile(statistical, PERCENTILE))
    scale = float(statistical.max(initial=0.0)) or 1.0  # the bonus is for utilities from 0 to 1
    return [
        (value / scale + _bonus(past, number)) * _systemic(past, preferred)
        for value, past in zip(statistical, newest, strict=True)
    ]


def _exploit(ready: Sequence[str], draw: Draw, count: int, generator: np.random.Generator) -> list[str]:
    if count <= 0 or not ready:
        return []
    found = utilities([draw.history(client_id) for client_id in ready], draw.number, draw.gains)
    cut_off = CUT_OFF * sorted(found, reverse=True)[min(count, len(found)) - 1]
    pool = [(client_id, value) for client_id, value in zip(ready, found, strict=True) if value >= cut_off]
    weights = [math.log(max(value, 1e-12)) for _, value in pool]
    return weighted_order([client_id for client_id, _ in pool], weights, generator)[:count]


def _last_counted(history: History) -> Past | None:
    return next((past for past in history.recent if past.reported), None)


def _statistical(past: Past | None) -> float:
    return 0.0 if past is None else max(past.examples, 1) * max(past.loss, 0.0)


def _bonus(past: Past | None, number: int) -> float:
    """sqrt(0.1 log R / L): L is the round in which the client was last counted."""
    last = past.number if past is not None else 1
    return math.sqrt(0.1 * math.log(max(number, 2)) / last)


def _systemic(past: Past | None, preferred: float) -> float:
    if past is None or past.took_ms <= preferred:
        return 1.0
    return float((preferred / past.took_ms) ** ALPHA)
