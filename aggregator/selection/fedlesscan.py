"""*Pure.* FedLesScan: Elzohairy et al., FedLesScan: Mitigating Stragglers in Serverless Federated Learning, 2022.

Who was never selected comes first. Then those who are not resting, in clusters by how long they train and how often
they miss; at a run's beginning the fastest cluster's turn, towards its end the slowest one's. Within a cluster who was
selected least comes first. Clients rest after a missed round, twice as long after each further one in a row, and are
drawn while they rest only where the others are too few.

Two points are our own. Both features are divided by the longest time, so that the scan's radii mean the same for
clients of seconds and of hours. And a client that is like nobody else is a cluster by itself when clusters are put in
order: as one group of outliers, the fastest and the slowest of them would be sorted by their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aggregator.interfaces import ClientRecord
from aggregator.selection.clusters import best_clusters
from aggregator.selection.draw import Draw, History, shuffled
from aggregator.strategies.base import Doubles

TIME_ALPHA = 0.5
MISSED_ALPHA = 0.8
MISSED_FACTOR = 1.5
"""A client that misses every round counts as this much slower than the slowest one."""


def fedlesscan(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """The ids of `draw.count` candidates (or all, if fewer), without repetition, sorted."""
    generator = draw.generator()
    order = shuffled([record.client_id for record in candidates], generator)  # breaks all ties
    rookies = [client_id for client_id in order if not draw.history(client_id).selected]
    known = [client_id for client_id in order if draw.history(client_id).selected]
    resting = [client_id for client_id in known if rests(draw.history(client_id), draw.number)]
    ready = [client_id for client_id in known if not rests(draw.history(client_id), draw.number)]
    return sorted([*rookies, *_by_clusters(ready, draw), *resting][: draw.count])


def rests(history: History, number: int) -> bool:
    """Whether a client still rests in round `number`: for 1, 2, 4, ... rounds after its last missed ones in a row."""
    missed = 0
    for past in history.recent:
        if not past.missed:
            break
        missed += 1
    return missed > 0 and number <= history.recent[0].number + 2 ** (missed - 1)


def features(histories: Sequence[History]) -> Doubles:
    """float64[n, 2]: each client's training time, and what its missed rounds add, in shares of the longest time."""
    timed = [[past.took_ms for past in each.recent if past.took_ms and not past.missed] for each in histories]
    times = np.array([_average(took, TIME_ALPHA) for took in timed])
    longest = float(times.max()) or 1.0
    times[times == 0.0] = longest  # never seen at work: nothing good is assumed
    missed = [_average([past.missed for past in each.recent], MISSED_ALPHA) for each in histories]
    return np.column_stack([times / longest, MISSED_FACTOR * np.array(missed)])


def _average(newest_first: Sequence[float], alpha: float) -> float:
    """The exponential moving average, from the oldest value on; 0 of nothing."""
    oldest_first = list(reversed(newest_first))
    average = float(oldest_first[0]) if oldest_first else 0.0
    for value in oldest_first[1:]:
        average = alpha * value + (1 - alpha) * average
    return average


def _by_clusters(client_ids: Sequence[str], draw: Draw) -> list[str]:
    """The cluster whose turn it is, then the slower ones, then the faster ones."""
    if not client_ids:
        return []
    histories = [draw.history(client_id) for client_id in client_ids]
    points = features(histories)
    clusters = sorted(best_clusters(points), key=lambda cluster: float(points[cluster].sum(axis=1).mean()))
    start = min(int(draw.progress * len(clusters)), len(clusters) - 1)
    return [
        client_ids[number]
        for cluster in clusters[start:] + clusters[:start]
        for number in sorted(cluster, key=lambda number: histories[number].selected)
    ]
