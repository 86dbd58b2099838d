"""*Pure.* Apodotiko's scoring: Chadha et al., Apodotiko: Enabling Efficient Serverless Federated Learning in
Heterogeneous Environments, 2024.

A round of a client is worth n * (E * n / B) / T: its examples, times its training steps, by its training time. All
clients of a run have the same local epochs E and batch size B, which therefore do not matter. A client's score is the
mean over its last five rounds, each older one with 0.8 of the weight, times a booster of 1.2 for each round that went
by without it. Who was never selected comes first, the others with probabilities in proportion to their scores; who
missed a round is left out for five rounds, unless the others are too few.

Under masks example counts are hidden, and all are taken to be alike.
"""  # noqa: D205

from __future__ import annotations

import math
from collections.abc import Sequence

from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw, History, shuffled, weighted_order

ROUNDS = 5
DECAY = 0.8
BOOSTER = 1.2
RESTS = 5


def apodotiko(candidates: Sequence[ClientRecord], draw: Draw) -> list[str]:
    """The ids of `draw.count` candidates (or all, if fewer), without repetition, sorted."""
    generator = draw.generator()
    order = shuffled([record.client_id for record in candidates], generator)
    rookies = [client_id for client_id in order if not draw.history(client_id).selected]
    known = [client_id for client_id in order if draw.history(client_id).selected]
    resting = [client_id for client_id in known if rests(draw.history(client_id), draw.number)]
    ready = [client_id for client_id in known if not rests(draw.history(client_id), draw.number)]
    weights = log_weights([draw.history(client_id) for client_id in ready], draw.number)
    return sorted([*rookies, *weighted_order(ready, weights, generator), *resting][: draw.count])


def rests(history: History, number: int) -> bool:
    """Whether the client missed one of the last five rounds."""
    return any(past.missed and number - past.number <= RESTS for past in history.recent)


def log_weights(histories: Sequence[History], number: int) -> list[float]:
    """The logarithm of score times booster for each; who has no score yet has the smallest that others have."""
    scores = [score(history) for history in histories]
    least = min((found for found in scores if found > 0.0), default=1.0)
    return [
        math.log(found or least) + math.log(BOOSTER) * max(0, number - history.recent[0].number - 1)
        for found, history in zip(scores, histories, strict=True)
    ]


def score(history: History) -> float:
    """Worth per ms, without E / B; 0 where no round of the client was counted lately."""
    counted = [past for past in history.recent if past.reported][:ROUNDS]
    weights = [DECAY**age for age in range(len(counted))]
    worths = [max(past.examples, 1) ** 2 / max(past.took_ms, 1) for past in counted]
    return sum(w * worth for w, worth in zip(weights, worths, strict=True)) / sum(weights) if counted else 0.0
