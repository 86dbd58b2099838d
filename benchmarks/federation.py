"""Rounds in one process for benchmarks: the product's strategies, sums, encodings; and the same once more, by itself.

`Product` goes through `aggregator.commit` (spool files, running sum, block by block) and, masked, through
`secagg.ring`'s encoding and decoding; pair masks cancel in the sum to the last bit, so they are left out. `Reference`
is each algorithm again in plain numpy and float64, from its paper and with nothing of the product in it, not even the
local training. Both see the same cohorts and orders of examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from learning import Array, Client, Floats, Net

from aggregator import commit, strategies
from aggregator.staleness import Late, factor
from aggregator.strategies.base import Beside
from aggregator.strategies.grouped import Grouped
from aggregator.strategies.robust import Robust
from aggregator.uploads import FloatSum
from fedless.protocol.messages import ClientRule, Optimizer
from fedless.protocol.secagg import ring

MAX_EXAMPLES = 1000
DELAYS, CHANCES = (0, 1, 2), (0.6, 0.3, 0.1)
"""By how many rounds a report comes late, where late ones count, and how often."""
GROUPS = 5
"""Cohorts of a round for the rules that look at their means."""
Summed = tuple[FloatSum | commit.MeanSum | commit.SingleReports, Mapping[str, float]]
"""A round's sum, and the means of its further coordinates."""


def cohort(number: int, clients: int, size: int) -> list[int]:
    """Who takes part in round `number`."""
    return sorted(np.random.default_rng([7, number]).choice(clients, size, replace=False).tolist())


def delays(number: int, size: int) -> list[int]:
    """By how many rounds each report of round `number` comes late."""
    return np.random.default_rng([9, number]).choice(DELAYS, size, p=CHANCES).tolist()


@dataclass
class Product:
    """A run of a strategy; `masked` says whether updates go through the ring."""

    name: str
    options: Mapping[str, float]
    rule: ClientRule
    clients: Sequence[Client]
    weights: Floats
    folder: Path
    masked: bool = False
    own: dict[int, Floats] = field(default_factory=dict)
    late: list[tuple[int, int, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The strategy and its first state."""
        self.strategy = strategies.make(self.name, self.options)
        assert self.strategy.complaints(self.rule) == []
        self.rule = self.strategy.client(self.rule)
        self.state = [np.full(len(self.weights), v, np.float32) for v in self.strategy.state.values()]

    def round(self, number: int, chosen: Sequence[int]) -> None:
        """One round: local training, the sum, the next model."""
        control = self.state[0] if self.rule.control else None
        results = [self.clients[k].train(self.weights, self.rule, control, self.own.get(k)) for k in chosen]
        updates = [np.frombuffer(result.payload, "<f4") for result in results]
        if self.rule.control:
            for k, update in zip(chosen, updates, strict=True):
                change = update[len(self.weights) :]
                self.own[k] = change if k not in self.own else self.own[k] + change
        if self.strategy.late is not None:
            summed = self._late_sum(number, results, self.strategy.late)
        elif isinstance(self.strategy, Grouped):
            summed = self._grouped_sum(number, results, updates)
        else:
            summed = self._ring_sum(number, results, updates) if self.masked else self._sum(results, updates)
        sum_, extras = summed
        beside = Beside(extras, len(chosen) / len(self.clients))
        blocks = list(commit.mean_blocks(sum_, self.strategy, beside))
        mean = np.concatenate(blocks, axis=-1)
        self.weights, self.state = self.strategy.step(self.weights, mean, self.state)

    def _late_sum(self, number: int, results: Sequence[Any], late: Late) -> Summed:
        """What comes in this round, of this one's cohort or earlier ones'; each weighs as its age says."""
        version, sum_ = number - 1, FloatSum(len(self.weights))
        for result, behind in zip(results, delays(number, len(results)), strict=True):
            self.late.append((number + behind, version, result))
        for _, base, result in [each for each in self.late if each[0] == number]:
            file = self.folder / "late.part"
            file.write_bytes(result.payload)
            weight = result.examples * factor(late, version, base)
            sum_.add(file, weight, weight if late.renormalised else result.examples)
        self.late = [each for each in self.late if each[0] > number]
        return sum_, {}

    def _grouped_sum(self, number: int, results: Sequence[Any], updates: Sequence[Array]) -> Summed:
        """The means of cohorts, each through a ring of its own."""
        means = []
        for at in range(GROUPS):
            summed, _ = self._ring_sum(number, results[at::GROUPS], updates[at::GROUPS])
            assert isinstance(summed, commit.MeanSum)
            means.append(summed.total)
        return commit.MeanSum(np.mean(means, axis=0, dtype=np.float32), cohorts=means), {}

    def _sum(self, results: Sequence[Any], updates: Sequence[Array]) -> Summed:
        files = []
        for place, update in enumerate(updates):
            files.append(self.folder / f"{place}.part")
            update.tofile(files[-1])
        if isinstance(self.strategy, Robust):
            return commit.SingleReports(files, len(updates[0])), {}
        sum_ = FloatSum(len(updates[0]))
        for file, result in zip(files, results, strict=True):
            sum_.add(file, result.examples, result.examples)
        names = self.strategy.extras(self.rule, MAX_EXAMPLES)
        examples = sum(result.examples for result in results)
        return sum_, {name: sum(result.sums[name] for result in results) / examples for name in names}

    def _ring_sum(self, number: int, results: Sequence[Any], updates: Sequence[Array]) -> Summed:
        bounds = self.strategy.extras(self.rule, MAX_EXAMPLES)
        extras = tuple(ring.Extra(name, bound) for name, bound in bounds.items())
        encoding = ring.plan(
            n=len(results), dimension=len(updates[0]), clip=1.0, max_examples=MAX_EXAMPLES, extras=extras
        )
        total = np.zeros(encoding.words, "<u4")
        for place, (result, update) in enumerate(zip(results, updates, strict=True)):
            means = {extra.name: result.sums[extra.name] / result.examples for extra in extras}
            seed = hashlib.sha256(f"{number} {place}".encode()).digest()
            total += ring.encode(encoding, update.copy(), result.examples, means, seed)
        decoded = ring.decode(encoding, total, len(results))
        return commit.MeanSum(decoded.mean), decoded.extras


@dataclass
class Reference:
    """The same algorithm in plain numpy, float64."""

    name: str
    options: Mapping[str, float]
    rule: ClientRule
    net: Net
    data: Sequence[tuple[Array, Array]]
    weights: Array
    own: dict[int, Array] = field(default_factory=dict)
    late: list[tuple[int, int, Array, int]] = field(default_factory=list)
    kept: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """In float64 from here on."""
        self.weights = self.weights.astype(np.float64)

    def _local(self, k: int) -> tuple[Array, int, float]:
        """delta, steps, loss before: gradient steps of `self.rule`, in the order that its seed gives."""
        rule, (x, y), start = self.rule, self.data[k], self.weights
        w, velocity, steps = start.copy(), np.zeros_like(start), 0
        random = np.random.Generator(np.random.PCG64(rule.seed))
        correction = 0.0
        if self.name == "scaffold":
            correction = self.kept.get("c", np.zeros_like(w)) - self.own.get(k, np.zeros_like(w))
        for _ in range(rule.local_epochs):
            order = random.permutation(len(y))
            for at in range(0, len(y), self.net.model.batch):
                batch = order[at : at + self.net.model.batch]
                g = self.net(params=w, x=x[batch], y=y[batch], weight=np.ones(len(batch)))["grad"]
                g = g + rule.proximal_mu * (w - start) + correction
                velocity = (rule.momentum if rule.optimizer is Optimizer.MOMENTUM else 0.0) * velocity - (
                    rule.learning_rate * g
                )
                w, steps = w + velocity, steps + 1
        return w - start, steps, self.net.judge(start, x, y)[0] if self.name == "qfedavg" else 0.0

    def round(self, number: int, chosen: Sequence[int]) -> None:
        """One round of the algorithm."""
        found = [self._local(k) for k in chosen]
        deltas = np.array([delta for delta, _, _ in found])
        n = np.array([len(self.data[k][1]) for k in chosen], float)
        if self.name in {"fedbuff", "fedlesscan", "apodotiko"}:
            self.weights = self.weights + self._late_move(number, deltas, n)
            return
        p = n / n.sum()
        self.weights = self.weights + self._move(chosen, deltas, p, found)

    def _move(self, chosen: Sequence[int], deltas: Array, p: Array, found: Sequence[Any]) -> Array:  # noqa: PLR0911 - one case each
        if self.name in {"median", "trimmed-mean", "norm-clipping", "krum"}:
            return self._robust(deltas)
        if self.name in {"group-median", "group-trimmed-mean"}:
            n = p / p[0]
            groups = [n[at::GROUPS] @ deltas[at::GROUPS] / n[at::GROUPS].sum() for at in range(GROUPS)]
            return self._over_groups(np.array(groups))
        get, mean = self.options.get, p @ deltas
        match self.name:
            case "fedavg" | "fedprox":
                return mean
            case "fedavgm":
                self.kept["v"] = get("momentum", 0.9) * self.kept.get("v", 0.0) + mean
                return get("learning_rate", 1.0) * self.kept["v"]
            case "fedadagrad" | "fedadam" | "fedyogi":
                return self._adaptive(mean)
            case "fednova":
                tau = np.array([steps for _, steps, _ in found], float)
                return (p @ tau) * (p @ (deltas / tau[:, None]))
            case "scaffold":
                return self._scaffold(chosen, deltas, p, found)
            case "qfedavg":
                q, rate = get("q", 1.0), self.rule.learning_rate
                loss = np.array([before for _, _, before in found])
                h = q * loss ** (q - 1) * (deltas**2).sum(1) / rate + loss**q
                return (p * loss**q) @ deltas / (p @ h)
        raise ValueError(self.name)

    def _late_move(self, number: int, deltas: Array, n: Array) -> Array:
        """The papers' weights: 1/sqrt(1+s); FedLesScan's (t_k+1)/(t+1). FedBuff does not divide by their sum."""
        for delta, examples, behind in zip(deltas, n, delays(number, len(n)), strict=True):
            self.late.append((number + behind, number - 1, delta, examples))
        total, divided = np.zeros_like(self.weights), 0.0
        for _, base, delta, examples in [each for each in self.late if each[0] == number]:
            age = number - 1 - base
            worth = (base + 1) / number if self.name == "fedlesscan" else 1 / np.sqrt(1 + age)
            total += examples * worth * delta
            divided += examples * (1.0 if self.name == "fedbuff" else worth)
        self.late = [each for each in self.late if each[0] > number]
        return total / divided

    def _over_groups(self, means: Array) -> Array:
        if self.name == "group-median":
            return np.median(means, axis=0)
        cut = int(np.ceil(self.options.get("trim", 0.25) * len(means) - 1e-9))
        return np.sort(means, axis=0)[cut : len(means) - cut].mean(0)

    def _robust(self, deltas: Array) -> Array:
        get = self.options.get
        if self.name == "median":
            return np.median(deltas, axis=0)
        if self.name == "trimmed-mean":
            cut = int(np.ceil(get("trim", 0.1) * len(deltas) - 1e-9))
            return np.sort(deltas, axis=0)[cut:-cut].mean(0)
        if self.name == "norm-clipping":
            lengths = np.linalg.norm(deltas, axis=1)
            return (deltas * np.minimum(1, get("norm", 1.0) / lengths)[:, None]).mean(0)
        return self._krum(deltas)

    def _adaptive(self, d: Array) -> Array:
        tau = self.options.get("tau", 1e-3)
        beta1 = 0.0 if self.name == "fedadagrad" else 0.9
        m = beta1 * self.kept.get("m", 0.0) + (1 - beta1) * d
        v = self.kept.get("v", np.full_like(d, tau**2))
        if self.name == "fedadagrad":
            v = v + d**2
        elif self.name == "fedadam":
            v = 0.99 * v + 0.01 * d**2
        else:
            v = v - 0.01 * d**2 * np.sign(v - d**2)
        self.kept |= {"m": m, "v": v}
        return self.options["learning_rate"] * m / (np.sqrt(v) + tau)

    def _scaffold(self, chosen: Sequence[int], deltas: Array, p: Array, found: Sequence[Any]) -> Array:
        c = self.kept.get("c", np.zeros_like(self.weights))
        changes = []
        for k, (delta, steps, _) in zip(chosen, found, strict=True):
            changes.append(-c - delta / (steps * self.rule.learning_rate))
            self.own[k] = self.own.get(k, np.zeros_like(c)) + changes[-1]
        self.kept["c"] = c + len(chosen) / len(self.data) * (p @ np.array(changes))
        return p @ deltas

    def _krum(self, deltas: Array) -> Array:
        f, keep, count = int(self.options["byzantine"]), int(self.options.get("keep", 1)), len(deltas)
        apart = np.array([((deltas - row) ** 2).sum(1) for row in deltas])
        np.fill_diagonal(apart, np.inf)
        scores = np.sort(apart, axis=1)[:, : count - f - 2].sum(1)
        return deltas[np.argsort(scores, kind="stable")[:keep]].mean(0)
