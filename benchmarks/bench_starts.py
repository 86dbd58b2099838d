"""Cold and warm starts: a wake-up to the first training step, and what the sandbox costs.

A whole device is woken for rounds of one step, once with nothing kept (cold) and once with `[warm]` (participant and
fork server stay): from the wake-up's arrival to the first optimiser step, over mTLS, mosquitto and the real sandbox.
Apart from that, instances alone: started fresh or forked, with and without bubblewrap; the difference is the sandbox.
Reference, in the same run: the same instance without a sandbox, started fresh. Goals on 2 cores: 600 and 60 ms (p50).
And, where they are at hand, TensorFlow and PyTorch: a fresh process of each to the first step of the same CNN, in turn
with a fresh instance of ours. `--tensorflow-python PYTHON` (this interpreter, if it has it), `--torch-python PYTHON`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fresh
import harness
import psutil
from published import STARTS

from edge_runtime import sandbox
from edge_runtime.instance import Instance
from edge_runtime.jobs import Job, JobKind
from edge_runtime.warm import ForkServer
from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.run import train
from fedless.protocol.messages import ClientRule

ROUNDS = 25
INSTANCES = 15
FRESH = 5
KEEP = {"warm": {"memory_mb": 1000, "keep_s": 60}}
FUNCTIONS = {"mlp_101770": "function-mlp", "cnn_582026": "function"}


def main() -> None:
    """Measure devices, then instances."""
    parser = argparse.ArgumentParser(description="Cold and warm starts.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    own = sys.executable if find_spec("tensorflow") else ""
    for library, python in (("tensorflow", own), ("torch", "")):
        parser.add_argument(f"--{library}-python", default=python, metavar="PYTHON")
    given = parser.parse_args()
    rounds = given.rounds
    harness.wait_idle()
    devices = {
        name: {how: device(harness.MNIST / folder, rounds, settings) for how, settings in _hows()}
        for name, folder in FUNCTIONS.items()
    }
    level = sandbox.probe()
    alone = {name: instances(harness.MNIST / folder, level) for name, folder in FUNCTIONS.items()}
    small = alone["mlp_101770"]
    others = {
        library: python
        for library, python in (("tensorflow", given.tensorflow_python), ("torch", given.torch_python))
        if python
    }
    cold = devices["cnn_582026"]["cold"]["p50"]
    harness.finish(
        "starts",
        wake_to_first_step_ms=devices,
        instance_to_first_step_ms=alone,
        fresh_process_to_first_step=libraries(level, others, cold),
        sandbox_cost_ms={
            how: round(small[f"{how}_boxed"]["p50"] - small[f"{how}_bare"]["p50"], 1) for how in ("cold", "warm")
        },
        sandbox=list(level.mechanisms),
        reference={"cold_bare_ms": small["cold_bare"]["p50"], "what": "a fresh instance without a sandbox, MLP"},
        ratio=round(small["warm_boxed"]["p50"] / small["cold_bare"]["p50"], 3),
        goals_ms={"cold": 600, "warm": 60},
        anchors=STARTS,
        rounds=rounds,
    )  # fmt: skip


def _hows() -> list[tuple[str, dict[str, Any]]]:
    return [("cold", {}), ("warm", KEEP)]


def device(function: Path, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One device, `rounds` rounds of one step; the first one, with its downloads, is left out."""
    edge = Device("edge-1", harness.images(64), settings)
    with (
        harness.scratch() as folder,
        harness.quiet() as progress,
        LocalFleet(folder / "fleet", [edge], open_link) as fleet,
    ):
        idle = harness.memory_mb(fleet.agents["edge-1"].process.pid)
        task = harness.task("starts", rounds, 1, max_steps=1)
        _, done = train(fleet, fleet.operator(), function, task, b"", folder / "rounds.jsonl", progress)
        kept = psutil.Process(fleet.agents["edge-1"].process.pid).children(recursive=True)
        kept_pss = sum(process.memory_full_info().pss for process in kept) / harness.MB
    clients = [entry["clients"]["edge-1"] for entry in done][1:]
    return {
        **spread([client["timings_ms"]["first_step"] for client in clients]),
        "starts": {how: sum(client["start"] == how for client in clients) for how in ("cold", "warm")},
        "phases_ms": {
            name: harness.middle([client["timings_ms"].get(name, 0.0) for client in clients], 1)
            for name in clients[-1]["timings_ms"]
        },
        "idle_agent_pss_mb": round(idle["pss_mb"], 1),
        "kept_warm_pss_mb": round(kept_pss, 1),
    }


def instances(function: Path, level: sandbox.Level) -> dict[str, dict[str, float]]:
    """Instances alone: from asking for one to its first step. The four ways take turns, so that all see one machine."""
    boxed, inside = boxed_job(function, harness.MNIST / "data", level)
    bare = replace(boxed, confinement={})
    with ForkServer.start(None) as bare_server, ForkServer.start(inside) as boxed_server:
        for server in (bare_server, boxed_server):
            server.wait_ready()
        ways = {
            "cold_bare": Start(bare, Instance.start),
            "cold_boxed": Start(boxed, lambda: Instance.start(space=inside)),
            "warm_bare": Start(bare, bare_server.instance),
            "warm_boxed": Start(boxed, boxed_server.instance),
        }
        figures: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(INSTANCES):
            for name, way in ways.items():
                figures[name].append(way.first_step_ms())
    return {name: spread(values) for name, values in figures.items()}


def libraries(level: sandbox.Level, others: dict[str, str], cold_ms: float) -> dict[str, Any]:
    """The CNN's first step in a fresh process of each library and in a fresh instance in its sandbox, in turn.

    Ratios are to that instance, and to the whole of a device's cold start, from the wake-up on (`cold_ms`).
    """
    function, data = harness.MNIST / "function", harness.MNIST / "data"
    job, space = boxed_job(function, data, level)
    ways: dict[str, Callable[[], float]] = {
        "instance": Start(job, lambda: Instance.start(space=space)).first_step_ms
    }
    programs = {"tensorflow": fresh.TENSORFLOW, "torch": fresh.TORCH}
    for library, python in others.items():
        ways[library] = lambda library=library, python=python: fresh.first_step_ms(python, programs[library])
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(FRESH):
        for name, way in ways.items():
            figures[name].append(way())
    medians = {name: harness.middle(values, 1) for name, values in figures.items()}
    ratios = {
        name: {
            "to_instance": round(medians[name] / medians["instance"], 1),
            "to_wake_up_cold": round(medians[name] / cold_ms, 1),
        }
        for name in others
    }
    missing = {
        library: f"not measured: name an interpreter that has it with --{library}-python"
        for library in programs.keys() - others.keys()
    }
    return {"cnn_582026_ms": medians, "ratios": ratios, "repeats": FRESH, **missing}


def boxed_job(function: Path, data: Path, level: sandbox.Level) -> tuple[Job, sandbox.Space | None]:
    """One step on the data, and what it may see; None where there are no namespaces."""
    space = sandbox.Space((str(function), str(data)))
    job = Job(
        JobKind.TRAIN, str(function), str(function / "initial.f32"), {"kind": "idx", "path": str(data)},
        ClientRule(max_steps=1), confinement=sandbox.confinement(space, 512, 60, level),
    )  # fmt: skip
    return job, space if level.namespaces else None


@dataclass(frozen=True)
class Start:
    """One way to get an instance, and the job that it is given."""

    job: Job
    start: Callable[[], Instance]

    def first_step_ms(self) -> float:
        """Ask for an instance, give it the job, and see when its first step was complete."""
        found: list[float] = []

        def on_event(event: Any) -> None:  # noqa: ANN401
            if event["event"] == "first_step":
                found.append(event["monotonic_ms"])

        since = time.monotonic() * 1000
        with self.start() as instance:
            instance.run(self.job, timeout_ms=60_000, on_event=on_event)
        return found[0] - since


def spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return {
        "p50": harness.middle(ordered, 1),
        "p95": round(ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)], 1),
    }


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
