"""*Pure.* When a round would close, and how probably it closes without a model: the arithmetic behind `plan.py`.

A round is drawn many times from what is known of its clients: who comes, when each one's report is there, and when
the rules of `round.py` would close it. The draws begin with a seed, so the same knowledge gives the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.guards import GRACE_MS_MIN

Doubles = npt.NDArray[np.float64]
DRAWS = 400
_CELLS = 4_000_000
"""Times that are drawn at most, over all draws: a cohort of 100,000 is drawn 40 times."""
_SEED = 20_170_410


@dataclass(frozen=True)
class Rules:
    """How a round closes: `goal` reports, or `minimum` and `grace`, or the deadline. Of `woken` clients."""

    woken: int
    goal: int
    minimum: int
    grace: float
    deadline_ms: float


@dataclass(frozen=True)
class Times:
    """What is known of one client: how probably it reports, and times from opening to report, ms.

    `spread`: each time is multiplied by a log-normal number of this standard deviation (0: measured times vary enough).
    """

    presence: float
    report_ms: tuple[float, ...]
    spread: float = 0.0


@dataclass(frozen=True)
class Closing:
    """Over all draws: time to the close of reports in ms, median and 95th percentile; how many reports (mean).

    `abandoned` is the share of draws that end with too few; `late` the share of reports that come after the deadline.
    """

    p50_ms: float
    p95_ms: float
    reports: float
    abandoned: float
    late: float


def fewer_than(least: int, n: int, p: float) -> float:
    """The probability that fewer than `least` of `n` come, each with probability `p`: the binomial lower tail."""
    if least <= 0:
        return 0.0
    if least > n:
        return 1.0
    if p <= 0.0 or p >= 1.0:
        return float(p <= 0.0)
    logs = [_log_binomial(n, k) + k * math.log(p) + (n - k) * math.log1p(-p) for k in range(least)]
    top = max(logs)
    return min(1.0, math.exp(top) * math.fsum(math.exp(each - top) for each in logs))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def close_ms(arrivals: Sequence[float] | Doubles, rules: Rules) -> tuple[float, int]:
    """When reports are closed if they arrive at these moments (ms from opening, ascending), and how many count.

    The rules of `round.py`: the goal, or everybody; else the grace time after the minimum; else the deadline.
    A count under the minimum is a round that is abandoned.
    """
    times = np.asarray(arrivals, np.float64)
    in_time = times[times <= rules.deadline_ms]
    goal = min(rules.goal, rules.woken)
    if len(in_time) < rules.minimum:
        return rules.deadline_ms, len(in_time)
    at_minimum = in_time[rules.minimum - 1]
    grace_ms = max(rules.grace * float(np.median(in_time[: rules.minimum])), GRACE_MS_MIN)
    end = min(at_minimum + grace_ms, rules.deadline_ms)
    if len(in_time) >= goal and in_time[goal - 1] <= end:
        return float(in_time[goal - 1]), goal
    counted = int(np.count_nonzero(in_time <= end))
    return float(end), counted


def closing(clients: Sequence[Times], rules: Rules) -> Closing:
    """What rounds of cohorts drawn uniformly from these clients would be like; `clients` must not be empty."""
    generator = np.random.default_rng(_SEED)
    draws = max(20, min(DRAWS, _CELLS // max(1, rules.woken)))
    known = _Known(clients)
    closes, counts, late, came = np.zeros(draws), np.zeros(draws), 0, 0
    for at in range(draws):
        times = known.arrivals(rules.woken, generator)
        closes[at], counts[at] = close_ms(times, rules)
        late += int(np.count_nonzero(times > rules.deadline_ms))
        came += len(times)
    return Closing(
        p50_ms=float(np.quantile(closes, 0.5)),
        p95_ms=float(np.quantile(closes, 0.95)),
        reports=float(counts.mean()),
        abandoned=float(np.mean(counts < rules.minimum)),
        late=late / came if came else 0.0,
    )


class _Known:
    """The clients as arrays: one line of times for each, as long as the longest."""

    def __init__(self, clients: Sequence[Times]) -> None:
        self._counts = np.array([len(client.report_ms) for client in clients])
        self._times = np.zeros((len(clients), int(self._counts.max())))
        for line, client in zip(self._times, clients, strict=True):
            line[: len(client.report_ms)] = client.report_ms
        self._presence = np.array([client.presence for client in clients])
        self._spread = np.array([client.spread for client in clients])

    def arrivals(self, woken: int, generator: np.random.Generator) -> Doubles:
        """When the reports of a cohort arrive, ascending; who is not there has none."""
        everybody = len(self._counts)
        chosen = generator.choice(everybody, woken, replace=woken > everybody, shuffle=False)
        there = chosen[generator.random(woken) < self._presence[chosen]]
        column = (generator.random(len(there)) * self._counts[there]).astype(np.int64)
        factor = np.exp(generator.standard_normal(len(there)) * self._spread[there])
        return np.sort(self._times[there, column] * factor)
