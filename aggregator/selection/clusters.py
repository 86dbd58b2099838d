"""*Pure.* Clusters of points by density: Ester et al., A Density-Based Algorithm for Discovering Clusters, 1996.

With two as the least size of a cluster, DBSCAN's clusters are what hangs together over steps of at most the radius. A
minimum spanning tree knows that for every radius at once, in O(n^2) time and O(n) memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from aggregator.strategies.base import Doubles

RADII = tuple(float(radius) for radius in np.arange(0.01, 2.0, 0.1))
Edge = tuple[float, int, int]


def best_clusters(points: Doubles) -> list[list[int]]:
    """The points' numbers in clusters, of the radius with the best index (Calinski & Harabasz 1974).

    The points float64[n, d] that are like no other are one group for the index, and alone in what is returned. All
    points are one cluster where no radius divides them.
    """
    edges = _spanning_tree(points)
    best, found = 0.0, [0] * len(points)
    for radius in RADII:
        labels = _labels(len(points), [edge for edge in edges if edge[0] <= radius])
        score = index(points, labels)
        if score > best:
            best, found = score, labels
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(found):
        groups.setdefault(label, []).append(number)
    return list(groups.values())


def index(points: Doubles, labels: Sequence[int]) -> float:
    """Calinski and Harabasz' index of a division, the larger the better; 0 where it is not defined."""
    sizes = Counter(labels)
    grouped = np.array([label if sizes[label] > 1 else -1 for label in labels])
    groups = [points[grouped == label] for label in np.unique(grouped)]
    count, parts = len(points), len(groups)
    if not 1 < parts < count:
        return 0.0
    middle = points.mean(axis=0)
    between = sum(len(group) * float(np.square(group.mean(axis=0) - middle).sum()) for group in groups)
    within = sum(float(np.square(group - group.mean(axis=0)).sum()) for group in groups)
    return between * (count - parts) / (max(within, 1e-12) * (parts - 1))


def _spanning_tree(points: Doubles) -> list[Edge]:
    """Prim's algorithm: length, from, to of each of the n - 1 edges."""
    count = len(points)
    nearest = np.full(count, np.inf)
    to_whom = np.zeros(count, np.int64)
    outside = np.ones(count, bool)
    edges: list[Edge] = []
    at = 0
    for _ in range(count - 1):
        outside[at] = False
        distance = np.sqrt(np.square(points - points[at]).sum(axis=1))
        nearer = outside & (distance < nearest)
        nearest[nearer], to_whom[nearer] = distance[nearer], at
        at = int(np.where(outside, nearest, np.inf).argmin())
        edges.append((float(nearest[at]), int(to_whom[at]), at))
    return edges


def _labels(count: int, edges: Sequence[Edge]) -> list[int]:
    """The number of each point's cluster, of the edges that hold clusters together."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for _, one, other in edges:
        parent[root(one)] = root(other)
    return [root(number) for number in range(count)]
