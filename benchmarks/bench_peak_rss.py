"""Peak memory of training: the instance on the TFLite runtime beside TensorFlow, and PyTorch where it is given.

The four models of FedLess (`networks`): the same layers, batch, optimiser, examples and number of steps, each in a
fresh process of one thread; VmHWM of that process when it is done. Reference, in the same run: TensorFlow. PyTorch has
an environment of its own: `--torch-python PYTHON` names an interpreter that has it; without it, the result says that
PyTorch was not measured. `--only NAME ...` measures some of the models; building the LSTM takes a minute and a half.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from networks import NETWORKS, Network

from edge_runtime.instance import Instance
from edge_runtime.jobs import Job, JobKind
from fedless.authoring.build import build_function
from fedless.authoring.model import Model

STEPS, REPEATS = 30, 3
TIMEOUT_MS = 600_000


def main() -> None:
    """Measure each network on each runtime."""
    parser = argparse.ArgumentParser(description="Peak memory of training.")
    parser.add_argument(
        "--torch-python", default="", metavar="PYTHON", help="An interpreter that has PyTorch."
    )
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--data", type=Path, default=harness.ROOT.parent / "shared" / "data")
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fedless-bench-") as folder:
        for name in given.only:
            harness.say(name)
            figures[name] = measure(NETWORKS[name], Path(folder, name), given.data, given.torch_python)
    missing = "not measured: name an interpreter that has it with --torch-python"
    without = {} if given.torch_python else {"torch": missing}
    harness.finish("peak_rss", **figures, steps=STEPS, repeats=REPEATS, **without)


def measure(network: Network, folder: Path, data: Path, torch: str) -> dict[str, Any]:
    """Medians of one network's peaks in MB, and the others' ratios to ours."""
    began = time.monotonic()
    model = Model(network.layers(), input=network.input, loss="softmax_cross_entropy", batch=network.batch)
    build_function(model, folder, name="peak", version=1)
    built_s = time.monotonic() - began
    arrays, source = network.examples(STEPS * network.batch, data)
    file = folder / "data.npz"
    np.savez(file, allow_pickle=False, **arrays)
    peaks = {
        "fedless_mb": instance_mb(network, folder, file),
        "tensorflow_mb": other_mb(sys.executable, "tensorflow", network, file),
    }
    if torch:
        peaks["torch_mb"] = other_mb(torch, "torch", network, file)
    ours = peaks["fedless_mb"]
    ratios = {
        f"{key[:-3]}_to_ours": round(value / ours, 2) for key, value in peaks.items() if key != "fedless_mb"
    }
    return {
        **{key: round(value, 1) for key, value in peaks.items()},
        **ratios,
        "parameters": model.parameters,
        "batch": network.batch,
        "optimizer": network.rule.optimizer,
        "examples": source,
        "graph_bytes": (folder / "model.tflite").stat().st_size,
        "built_s": round(built_s, 1),
    }


def instance_mb(network: Network, folder: Path, file: Path) -> float:
    """Peak of an instance of ours that trains, MB; the median of a few."""
    job = Job(
        kind=JobKind.TRAIN,
        function_dir=str(folder),
        parameters=str(folder / "initial.f32"),
        data={"kind": "npz", "path": str(file)},
        rule=network.rule,
        memory_mb=4096,
    )
    peaks = [Instance.start().run(job, timeout_ms=TIMEOUT_MS).peak_rss_mb for _ in range(REPEATS)]
    return harness.middle(peaks)


def other_mb(python: str, runtime: str, network: Network, file: Path) -> float:
    """Peak of a fresh process of another runtime, MB; the median of a few."""
    peaks = []
    for _ in range(REPEATS):
        done = subprocess.run(
            [python, "-c", network.program(runtime), str(file), str(network.batch)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_MS / 1000,
        )
        peaks.append(float(done.stdout))
    return harness.middle(peaks)


if __name__ == "__main__":
    main()
