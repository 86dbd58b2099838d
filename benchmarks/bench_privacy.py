"""Accuracy against epsilon with central, distributed and local noise, and what the sampler of the noise costs.

600 clients with 100 images each of MNIST's split (sorted by label, two shards of 50 for each client), a hundred of
them in each round in turn, softmax regression on 14 x 14 pixels (1,970 parameters), trained here in numpy. Everything
between update and mean is the product's own code: clipping, ring words, noise, decoding, ledger. Epsilon is the worst
ledger's (Renyi accounting, no amplification; a client counts only its own rounds). The reference is the same training
without noise, in the same run.

Needs MNIST in ../shared/data/mnist (`--data` for another place) and fedless[privacy]. `--rounds`: a multiple of 6.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from harness import ROOT, finish, say
from numpy.typing import NDArray

from aggregator import ledger
from aggregator.privacy import Noise, Place, clipped_share, encoding
from edge_runtime.dpsgd import PrivateGradients
from fedless.protocol.messages import ClientRule
from fedless.protocol.prg import Words
from fedless.protocol.privacy import discrete_gaussian
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.epochs import Trust, threshold
from fedless.protocol.secagg.ring import RingEncoding

Floats = NDArray[np.float32]
CLIENTS, COHORT, EACH, SIDE, CLASSES = 600, 100, 100, 14, 10
FEATURES = SIDE * SIDE + 1
PARAMETERS = FEATURES * CLASSES
BATCH, RATE, DELTA = 10, 0.1, 1e-5
QUANTILE, CLIP_RATE, FIRST_CLIP = 0.5, 0.2, 0.5
MULTIPLIERS = (0.25, 0.5, 1.0, 2.0)
LOCAL_MULTIPLIERS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Digits:
    """Images as float32[n, 197], the last column 1, and labels."""

    x: Floats
    y: NDArray[np.int64]


def read(folder: Path, name: str) -> Digits:
    """One part of MNIST, 2 x 2 pixels averaged."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{name}-{kind}.gz").read_bytes()), np.uint8, offset=offset)
        for kind, offset in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
    )
    small = images.reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4)).reshape(len(labels), -1) / 255.0
    return Digits(np.hstack([small, np.ones((len(small), 1))]).astype(np.float32), labels.astype(np.int64))


def shards(train: Digits) -> list[Digits]:
    """Two shards of 50 images of (mostly) one label each for every client."""
    order = np.argsort(train.y, kind="stable")
    dealt = np.random.default_rng(1).permutation(2 * CLIENTS).reshape(CLIENTS, 2)
    parts = order.reshape(2 * CLIENTS, EACH // 2)
    return [Digits(train.x[parts[pair].ravel()], train.y[parts[pair].ravel()]) for pair in dealt]


def errors(weights: Floats, batch: Digits) -> Floats:
    """What softmax says less what is right, float32[n, 10]."""
    logits = batch.x @ weights.reshape(FEATURES, CLASSES)
    logits -= logits.max(axis=1, keepdims=True)
    likely = np.exp(logits)
    likely /= likely.sum(axis=1, keepdims=True)
    likely[np.arange(len(batch.y)), batch.y] -= 1.0
    found: Floats = likely.astype(np.float32)
    return found


def local_training(
    weights: Floats, data: Digits, order: NDArray[np.intp], private: PrivateGradients | None
) -> Floats:
    """One pass of SGD; the update."""
    now = weights.copy()
    for at in range(0, EACH, BATCH):
        batch = Digits(data.x[order[at : at + BATCH]], data.y[order[at : at + BATCH]])
        off = errors(now, batch)
        if private is None:
            gradient = (batch.x.T @ off / BATCH).ravel()
        else:
            gradient = private.mean(np.outer(x, e).ravel() for x, e in zip(batch.x, off, strict=True))
        now -= np.float32(RATE) * gradient
    return now - weights


def accuracy(weights: Floats, test: Digits) -> float:
    """The share of right answers."""
    return float((np.argmax(test.x @ weights.reshape(FEATURES, CLASSES), axis=1) == test.y).mean())


def plain_encoding() -> RingEncoding:
    """Masked rounds without differential privacy, every client alike."""
    return ring.plan(n=COHORT, dimension=PARAMETERS, clip=1.0, max_examples=1)


@dataclass
class Run:
    """One training with one kind of noise."""

    clients: list[Digits]
    test: Digits
    rounds: int
    noise: Noise | None

    def __post_init__(self) -> None:
        """The same order of clients and examples in every run."""
        self.random = np.random.default_rng(2)
        self.weights: Floats = np.zeros(PARAMETERS, np.float32)
        self.clip = self.noise.clip if self.noise else 0.0

    def train(self) -> float:
        """All rounds; the accuracy."""
        for _ in range(self.rounds // 6):  # each client is in one round of six
            for cohort in self.random.permutation(CLIENTS).reshape(6, COHORT):
                self.round(cohort)
        return accuracy(self.weights, self.test)

    def round(self, cohort: NDArray[np.int64]) -> None:
        """One round, between update and mean in the product's own code."""
        local = self.noise is not None and self.noise.place is Place.LOCAL
        noise = None
        if self.noise is not None and not local:
            kept = (self.noise.place, self.noise.multiplier, self.clip)
            noise = Noise(*kept, adaptive=True).sized(COHORT)
        least = threshold(COHORT, Trust.CHEATING)
        how = plain_encoding()
        if noise is not None:
            how = encoding(noise, members=COHORT, least=least, dimension=PARAMETERS, bits=32)
        total: Words = np.zeros(how.words, np.uint32)
        for number in cohort:
            total += ring.encode(how, self.update(int(number), local=local), 1, {}, os.urandom(32))
        ring.add_server_noise(how, total, os.urandom(32))
        decoded = ring.decode(how, total, COHORT)
        self.weights += decoded.mean
        if noise is not None:
            share = clipped_share(noise, decoded.extras)
            self.clip = noise.next_clip(share if share is not None else QUANTILE, QUANTILE, CLIP_RATE)

    def update(self, number: int, *, local: bool) -> Floats:
        """What one client's training gives."""
        private = None
        if local and self.noise is not None:
            rule = ClientRule(example_clip=self.noise.clip, example_noise=self.noise.multiplier)
            private = PrivateGradients(rule, PARAMETERS, BATCH, os.urandom(32))
        return local_training(self.weights, self.clients[number], self.random.permutation(EACH), private)


def sampler() -> dict[str, float]:
    """Values per second of the discrete Gaussian, beside numpy's normal generator, which is not cryptographic."""
    size, ours, theirs = 1_000_000, [], []
    generator = np.random.default_rng(1)
    for _ in range(5):
        began = time.perf_counter()
        discrete_gaussian(os.urandom(32), 2**20, size)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        generator.normal(0.0, 2.0**20, size)
        theirs.append(time.perf_counter() - began)
    return {
        "values_per_s": round(size / min(ours)),
        "numpy_normal_values_per_s": round(size / min(theirs)),
        "times_as_long_as_numpy": round(min(ours) / min(theirs), 2),
    }


def main() -> None:
    """Print the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mnist")
    options.add_argument("--rounds", type=int, default=60)
    given = options.parse_args()
    if find_spec("dp_accounting") is None or not (given.data / "train-images-idx3-ubyte.gz").is_file():
        finish("privacy", sampler=sampler(), left_out=f"needs fedless[privacy], and MNIST in {given.data}")
        return
    clients, test = shards(read(given.data, "train")), read(given.data, "t10k")
    began = time.perf_counter()
    without = Run(clients, test, given.rounds, None).train()
    round_ms = (time.perf_counter() - began) * 1000 / given.rounds
    say(f"no noise: accuracy {without:.4f}")
    curves: dict[str, list[dict[str, float]]] = {}
    kinds = [(place, z, FIRST_CLIP) for place in (Place.SERVER, Place.DISTRIBUTED) for z in MULTIPLIERS]
    for place, multiplier, clip in [*kinds, *((Place.LOCAL, z, 1.0) for z in LOCAL_MULTIPLIERS)]:
        began = time.perf_counter()
        found = Run(
            clients, test, given.rounds, Noise(place, multiplier, clip, place is not Place.LOCAL)
        ).train()
        epsilon = ledger.epsilon_after(given.rounds // 6, multiplier, DELTA)
        point = {
            "multiplier": multiplier,
            "epsilon": round(epsilon, 3),
            "accuracy": round(found, 4),
            "of_the_accuracy_without": round(found / without, 3),
            "round_times_as_long": round((time.perf_counter() - began) * 1000 / given.rounds / round_ms, 2),
        }
        curves.setdefault(place.value, []).append(point)
        say(f"{place}: {point}")
    finish(
        "privacy",
        clients=CLIENTS,
        cohort=COHORT,
        parameters=PARAMETERS,
        rounds=given.rounds,
        rounds_of_each_client=given.rounds // 6,
        delta=DELTA,
        protects={"server": "client", "distributed": "client", "local": "example"},
        accuracy_without_noise=round(without, 4),
        curves=curves,
        sampler=sampler(),
        members_that_count=threshold(COHORT, Trust.CHEATING) - COHORT // 10,
        expected_extra_noise_of_distributed=round(
            math.sqrt(COHORT / (threshold(COHORT, Trust.CHEATING) - 10)), 3
        ),
    )


if __name__ == "__main__":
    main()
