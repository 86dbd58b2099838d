"""Asynchronous against synchronous rounds with 16 devices of mean delays 100, 200 and 400 s: time to an accuracy.

Time is simulated; what decides is the product's: the round's automaton says when a round closes, `late` who goes over
to the next one, the strategy what a report weighs, `commit` and `uploads` make the models, and devices train with their
own loop (a 784-32-10 MLP in numpy on MNIST, 300 images each, dealt evenly at random). A device's delay is normal around
its mean, with a quarter of it as standard deviation. The anchor is another task on another machine: only its ratio is
of use. Usage: `python benchmarks/bench_async.py [--target 0.9] [--data ../shared/data]`.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_convergence import read_mnist
from harness import finish, say, scratch
from learning import Array, Client, Floats, Mlp

from aggregator import commit, strategies
from aggregator import events as e
from aggregator.late import taken_over
from aggregator.members import OPEN, Member, Phase, Terms
from aggregator.round import Round
from aggregator.strategies.base import Beside
from aggregator.tasks import CohortSettings
from aggregator.uploads import FloatSum
from aggregator.wanted import wanted
from fedless.experiments.partition import iid
from fedless.protocol.messages import ClientRule, Encoding, Kind, Optimizer, ReportHeader

DEVICES = 16
DELAYS_S = (100.0, 200.0, 400.0)
RULE = ClientRule(Optimizer.SGD, 0.05)
LONGEST_MS = 10**9
Run = tuple[str, str, Mapping[str, float], Mapping[str, Any]]
RUNS: Sequence[Run] = (
    ("sync, all 16", "fedavg", {}, {"size": DEVICES, "over_selection": 1.0, "minimum_reports": DEVICES}),
    ("sync, 12 of 16", "fedavg", {}, {"size": 12, "over_selection": 1.33, "minimum_reports": 12}),
    ("fedbuff, buffer 4", "fedbuff", {"buffer": 4}, {"size": DEVICES}),
    ("fedbuff, buffer 8", "fedbuff", {"buffer": 8}, {"size": DEVICES}),
    ("apodotiko, ratio 0.5", "apodotiko", {"ratio": 0.5}, {"size": DEVICES}),
)


class Simulation:
    """One run in simulated time."""

    def __init__(self, run: Run, clients: Sequence[Client], weights: Floats, folder: Path) -> None:
        _, name, options, cohort = run
        self.strategy = strategies.make(name, options)
        self.cohort = CohortSettings(**cohort)
        self.clients, self.folder = clients, folder
        self.models = [weights]
        self.delays = np.random.default_rng(11)
        self.now = 0
        self.coming: list[tuple[int, int, int]] = []  # when (ms), which device, on which model
        self.round: Round | None = None

    def open(self) -> Round:
        """The next round: late devices go over, idle ones are woken."""
        version = len(self.models) - 1
        busy = len(self.coming)
        idle = [k for k in range(DEVICES) if k not in {k for _, k, _ in self.coming}]
        want = wanted(self.cohort, self.strategy, len(idle), busy)
        terms = Terms(
            round_id=version + 1,
            run_id="run",
            number=version + 1,
            kind=Kind.TRAIN,
            model_version=version,
            goal=want.goal,
            minimum=want.minimum,
            opened_at_ms=self.now,
            deadline_at_ms=LONGEST_MS,
            parameters=len(self.models[0]),
            max_examples=10**6,
            late=self.strategy.late,
        )
        over: dict[str, Member] = {} if self.round is None else taken_over(self.round.state, terms, self.now)
        draw = np.random.default_rng([3, version])
        woken = sorted(draw.permutation(idle)[: want.wake].tolist())
        round_ = Round(terms)
        round_.handle(e.CohortSelected({f"device-{k}": bytes(16) for k in woken}, over), self.now)
        for k in woken:
            mean_s = DELAYS_S[k % len(DELAYS_S)]
            delay_ms = int(1000 * max(mean_s / 10, self.delays.normal(mean_s, mean_s / 4)))
            heapq.heappush(self.coming, (self.now + delay_ms, k, version))
        self.round = round_
        return round_

    def go(self) -> Floats:
        """One round to its model."""
        round_ = self.open()
        sum_ = FloatSum(len(self.models[0]))
        while round_.phase in OPEN:
            self.now, k, base = heapq.heappop(self.coming)
            if round_.terms.late is None and base != round_.terms.model_version:
                continue  # refused: its round is closed
            self._report(round_, sum_, k, base)
        assert round_.phase is Phase.COMMITTING
        (mean,) = commit.mean_blocks(sum_, self.strategy, Beside({}))
        model, _ = self.strategy.step(self.models[-1], mean, [])
        self.models.append(model)
        if round_.terms.late is None:
            self.coming = []  # whoever is at work stops: a synchronous round asks everybody anew
        return model

    def _report(self, round_: Round, sum_: FloatSum, k: int, base: int) -> None:
        name, result = f"device-{k}", self.clients[k].train(self.models[base], RULE)
        size = len(result.payload)
        header = ReportHeader(base + 1, Encoding.FLOAT32, size, bytes(32), result.examples, result.sums)
        for event in (
            e.ClientCheckedIn(name, bytes(16)),
            e.ReportAnnounced(name, header),
            e.ReportArrived(name),
        ):
            effects = round_.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, e.AddReport):
                file = self.folder / "report.part"
                file.write_bytes(result.payload)
                sum_.add(file, effect.weight, effect.counts)


def until(
    run: Run, clients: Sequence[Client], test: tuple[Array, Array], target: float, most: int
) -> dict[str, Any]:
    """Simulated minutes until the model has the target for the first time, and how many models that took."""
    net = Mlp()
    with scratch() as folder:
        simulation = Simulation(run, clients, net.initial(0), folder)
        accuracy = 0.0
        while accuracy < target and len(simulation.models) <= most:
            accuracy = net.judge(simulation.go(), *test)[1]
    reached = accuracy >= target
    return {
        "minutes": round(simulation.now / 60_000, 1) if reached else None,
        "models": len(simulation.models) - 1,
        "accuracy": round(accuracy, 4),
    }


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--most", type=int, default=400)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    given = parser.parse_args()
    (x, y), test, full = read_mnist(given.data)
    net = Mlp()
    clients = [Client(net, x[mine][:300], y[mine][:300]) for mine in iid(y, DEVICES, seed=0)]
    found = {}
    for run in RUNS:
        found[run[0]] = until(run, clients, test, given.target, given.most)
        say(f"{run[0]}: {found[run[0]]}")
    sync = found["sync, all 16"]["minutes"]
    finish(
        "async",
        data="full MNIST" if full else "the example's subset",
        devices=DEVICES,
        mean_delays_s=DELAYS_S,
        target_accuracy=given.target,
        runs=found,
        time_by_sync={
            name: round(f["minutes"] / sync, 3) for name, f in found.items() if f["minutes"] and sync
        },
        anchors={
            "NVFlare edge, 16 devices": {"async_minutes": 45, "sync_minutes": 82, "ratio": round(45 / 82, 3)}
        },
    )


if __name__ == "__main__":
    main()
