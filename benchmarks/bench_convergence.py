"""Rounds to an accuracy, each strategy beside the same algorithm in plain numpy; in the clear, and through the ring.

MNIST as FedLess split it (arXiv 2111.03396): sorted by label, 600 shards of 100, three for each of 200 clients, of
which 25 take part in a round; one seed. The model is a 784-32-10 MLP with plain gradient steps, not the paper's CNN
with Adam, so that all strategies fit into minutes (their anchors are for the CNN). Where late reports count, 40 % of
them come one or two rounds late; where cohorts' means do, a round has five cohorts. FedNova would be FedAvg with
clients of equal steps: it has clients with 100, 200 or 300 images, and so has one more run of FedAvg. Tiny Shakespeare
by speaker, an LSTM of 48 units that guesses the next character, for three strategies. The curves are in the result;
`docs/generate/curves.py` draws them. Usage: `python benchmarks/bench_convergence.py [--rounds N] [--only STRATEGY ...]
[--data ../shared/data]`; without full MNIST the example's subset.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from federation import Product, Reference, cohort
from harness import MNIST, finish, say, scratch
from learning import Array, Client, Lstm, Mlp, Net

from edge_runtime.data.idx import read_idx
from fedless.experiments.partition import shards
from fedless.protocol.messages import ClientRule, Optimizer

CLIENTS, SHARDS, COHORT = 200, 3, 25
TARGETS, SPOKEN = (0.7, 0.8, 0.85), (0.16, 0.2, 0.25)
JUDGED = 2_000
"""Test images, so that judging after each round does not take most of the time."""
SGD = ClientRule(Optimizer.SGD, 0.1)
LATE = {"fedbuff", "fedlesscan", "apodotiko"}
NO_MASKS = {"median", "trimmed-mean", "krum", "norm-clipping", *LATE}
ONLY_MASKS = {"group-median", "group-trimmed-mean"}
Run = tuple[str, Mapping[str, float], ClientRule]
"""A strategy, with `, unequal clients` or without; its options; the clients' rule."""
UNEQUAL = ", unequal clients"
Plan = tuple[int, int, Sequence[float]]
"""Rounds, size of a cohort, target accuracies."""
RUNS: Sequence[Run] = (
    ("fedavg", {}, SGD),
    ("fedprox", {}, ClientRule(Optimizer.SGD, 0.1, proximal_mu=0.1)),
    ("fedavgm", {"momentum": 0.7}, SGD),
    ("fedadagrad", {"learning_rate": 0.03}, SGD),
    ("fedadam", {"learning_rate": 0.01}, SGD),
    ("fedyogi", {"learning_rate": 0.01}, SGD),
    ("fedavg, unequal clients", {}, SGD),
    ("fednova, unequal clients", {}, SGD),
    ("scaffold", {}, SGD),
    ("qfedavg", {"q": 0.1}, SGD),
    ("median", {}, SGD),
    ("trimmed-mean", {"trim": 0.1}, SGD),
    ("krum", {"byzantine": 2, "keep": 20}, SGD),
    ("norm-clipping", {"norm": 1.0}, SGD),
    ("group-median", {}, SGD),
    ("group-trimmed-mean", {"trim": 0.2}, SGD),
    ("fedbuff", {"buffer": 25}, SGD),
    ("fedlesscan", {}, SGD),
    ("apodotiko", {"ratio": 0.5}, SGD),
)


def compare(
    net: Net, data: Sequence[tuple[Array, Array]], test: tuple[Array, Array], run: Run, plan: Plan
) -> dict[str, Any]:
    """One strategy: product in the clear and through the ring, and the reference."""
    label, options, rule = run
    name = label.removesuffix(UNEQUAL)
    rounds, size, targets = plan
    clients = [Client(net, x, y) for x, y in data]
    with scratch() as folder:
        made: dict[str, Any] = {"reference": Reference(name, options, rule, net, data, net.initial(0))}
        if name not in ONLY_MASKS:
            made["plain"] = Product(name, options, rule, clients, net.initial(0), folder)
        if name not in NO_MASKS:
            made["masked"] = Product(name, options, rule, clients, net.initial(0), folder, masked=True)
        curves: dict[str, list[float]] = {key: [] for key in made}
        for number in range(1, rounds + 1):
            chosen = cohort(number, len(data), size)
            for key, each in made.items():
                each.round(number, chosen)
                curves[key].append(net.judge(each.weights.astype(np.float64), *test)[1])
    weights = {key: np.asarray(each.weights, np.float64) for key, each in made.items()}
    return {"options": dict(options), **_told(curves, weights, targets)}


def _told(
    curves: Mapping[str, Sequence[float]], weights: Mapping[str, Array], targets: Sequence[float]
) -> dict[str, Any]:
    def first(curve: Sequence[float], target: float) -> int | None:
        return next((number for number, value in enumerate(curve, 1) if value >= target), None)

    told: dict[str, Any] = {}
    for key, curve in curves.items():
        told[key] = {
            "rounds_to": {f"{target:g}": first(curve, target) for target in targets},
            "best_accuracy": round(max(curve), 4),
            "last_accuracy": round(curve[-1], 4),
            "curve": [round(value, 4) for value in curve],
        }
    length = float(np.linalg.norm(weights["reference"]))
    for key in set(curves) - {"reference"}:
        apart = np.abs(np.array(curves[key]) - np.array(curves["reference"]))
        told[key]["accuracy_by_reference"] = round(curves[key][-1] / max(curves["reference"][-1], 1e-9), 4)
        told[key]["largest_accuracy_difference_from_reference"] = round(float(apart.max()), 5)
        told[key]["weights_apart_from_reference"] = float(
            f"{np.linalg.norm(weights[key] - weights['reference']) / length:.2g}"
        )
    return told


def brief(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same without the curves."""
    return {
        key: {name: value for name, value in each.items() if name != "curve"} for key, each in told.items()
    }


def read_mnist(folder: Path) -> tuple[tuple[Array, Array], tuple[Array, Array], bool]:
    """Training and test images as float32[n, 784] from 0 to 1 with their labels; whether it is all of MNIST."""
    where = folder / "mnist"
    full = where.is_dir()
    if not full:
        say(f"{where} is absent: the example's subset of MNIST instead")
    found = []
    for name in ("train", "t10k"):
        images, labels = (
            read_idx((where if full else MNIST / "data") / f"{name}-{kind}-ubyte")
            for kind in ("images-idx3", "labels-idx1")
        )
        found.append((images.reshape(-1, 784).astype(np.float32) / 255, labels.astype(np.int32)))
    return found[0], found[1], full


def mnist(folder: Path, rounds: int, only: Sequence[str]) -> dict[str, Any]:
    """All strategies on MNIST."""
    (x, y), test, full = read_mnist(folder)
    dealt = shards(y, CLIENTS, SHARDS, seed=0)
    data = [(x[mine], y[mine]) for mine in dealt]
    draw = np.random.default_rng(5)
    fewer = [draw.permutation(mine)[: len(mine) * (1 + k % SHARDS) // SHARDS] for k, mine in enumerate(dealt)]
    unequal = [(x[mine], y[mine]) for mine in fewer]
    net, found, judged = Mlp(), {}, (test[0][:JUDGED], test[1][:JUDGED])
    for run in RUNS:
        if only and run[0].removesuffix(UNEQUAL) not in only:
            continue
        theirs = unequal if run[0].endswith(UNEQUAL) else data
        found[run[0]] = compare(net, theirs, judged, run, (rounds, COHORT, TARGETS))
        say(f"mnist {run[0]}: {brief(found[run[0]])}")
    return {
        "data": "full MNIST" if full else "the example's subset",
        "clients": CLIENTS,
        "examples_each": len(data[0][1]),
        "cohort": COHORT,
        "rounds": rounds,
        "targets": list(TARGETS),
        "strategies": found,
    }


def speakers(path: Path, length: int, most: int, least: int) -> tuple[list[tuple[Array, Array]], int]:
    """Windows of each speaker's text: `length` characters and the next one."""
    text = gzip.decompress(path.read_bytes()).decode()
    alphabet = {char: number for number, char in enumerate(sorted(set(text)))}
    said: dict[str, str] = {}
    for block in text.split("\n\n"):
        speaker, _, words = block.partition(":\n")
        said[speaker] = said.get(speaker, "") + words + "\n"
    random = np.random.default_rng(0)
    data = []
    for speaker in sorted(said):
        codes = np.array([alphabet[char] for char in said[speaker]], np.int32)
        if len(codes) < least + length:
            continue
        at = np.sort(random.choice(len(codes) - length, min(most, len(codes) - length), replace=False))
        data.append((np.stack([codes[a : a + length] for a in at]), codes[at + length]))
    return data, len(alphabet)


def shakespeare(folder: Path, rounds: int) -> dict[str, Any] | str:
    """Three strategies on tiny Shakespeare by speaker."""
    path = folder / "shakespeare" / "tinyshakespeare.txt.gz"
    if not path.is_file():
        say(f"{path} is absent: no Shakespeare")
        return f"{path.name} is absent"
    length = 20
    data, classes = speakers(path, length, most=320, least=60)
    held = [(x[::5], y[::5]) for x, y in data]
    train = [(np.delete(x, np.s_[::5], axis=0), np.delete(y, np.s_[::5])) for x, y in data]
    test = (np.concatenate([x for x, _ in held])[:JUDGED], np.concatenate([y for _, y in held])[:JUDGED])
    rule, found = ClientRule(Optimizer.SGD, 0.8), {}
    net = Lstm(classes, length=length)
    runs: Sequence[Run] = (("fedavg", {}, rule), ("fedavgm", {"momentum": 0.5}, rule), ("fednova", {}, rule))
    for run in runs:
        found[run[0]] = compare(net, train, test, run, (rounds, 10, SPOKEN))
        say(f"shakespeare {run[0]}: {brief(found[run[0]])}")
    return {
        "speakers": len(train),
        "examples": sum(len(y) for _, y in train),
        "cohort": 10,
        "rounds": rounds,
        "targets": list(SPOKEN),
        "strategies": found,
    }


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--shakespeare-rounds", type=int, default=25)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    figures: dict[str, Any] = {"mnist": mnist(given.data, given.rounds, given.only)}
    if given.shakespeare_rounds:
        figures["shakespeare"] = shakespeare(given.data, given.shakespeare_rounds)
    anchors = {"TensorFlow simulation, MNIST CNN with Adam": {"rounds_to_95_98_99": [12, 26, 66]}}
    finish("convergence", **figures, anchors=anchors)


if __name__ == "__main__":
    main()
