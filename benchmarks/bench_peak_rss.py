"""Peak memory of training: the instance on the TFLite runtime beside TensorFlow, and PyTorch where it is given.

The MNIST and FEMNIST CNNs of FedLess (Grafberger et al. 2021, arXiv 2111.03396): the same layers, batch, optimiser
(Adam) and number of steps on random images, each in a fresh process of one thread; VmHWM of that process when it is
done. Reference, in the same run: TensorFlow. PyTorch has an environment of its own: `--torch-python PYTHON` names an
interpreter that has it; without it, the result says that PyTorch was not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np

from edge_runtime.instance import Instance
from edge_runtime.jobs import Job, JobKind
from fedless.authoring.build import build_function
from fedless.authoring.layers import Conv2D, Dense, Flatten, MaxPool2D
from fedless.authoring.model import Model
from fedless.protocol.manifest import Input
from fedless.protocol.messages import ClientRule, Optimizer

STEPS, REPEATS = 30, 3
TIMEOUT_MS = 600_000


@dataclass(frozen=True)
class Network:
    """Two convolutions of 5x5 with pooling behind each, a hidden layer, an output layer."""

    padding: str
    hidden: int
    classes: int
    batch: int = 10


NETWORKS = {
    "mnist_cnn_582026": Network("valid", 512, 10),
    "femnist_cnn_6603710": Network("same", 2048, 62),
}
PEAK = """
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            print(int(line.split()[1]) / 1024, flush=True)
"""
TENSORFLOW = (
    PEAK
    + """
import os, sys, json
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
net = json.loads(sys.argv[1])
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
L = tf.keras.layers
model = tf.keras.Sequential([
    tf.keras.Input((28, 28, 1)),
    L.Conv2D(32, 5, activation="relu", padding=net["padding"]), L.MaxPooling2D(2),
    L.Conv2D(64, 5, activation="relu", padding=net["padding"]), L.MaxPooling2D(2),
    L.Flatten(), L.Dense(net["hidden"], activation="relu"), L.Dense(net["classes"]),
])
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(tf.keras.optimizers.Adam(1e-3), loss)
count = net["steps"] * net["batch"]
x = np.random.rand(count, 28, 28, 1).astype("float32")
model.fit(x, np.random.randint(0, net["classes"], count), batch_size=net["batch"], epochs=1, verbose=0)
peak()
"""
)
TORCH = (
    PEAK
    + """
import sys, json, torch
from torch import nn
net = json.loads(sys.argv[1])
torch.set_num_threads(1)
pad, side = (2, 7) if net["padding"] == "same" else (0, 4)
model = nn.Sequential(
    nn.Conv2d(1, 32, 5, padding=pad), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=pad), nn.ReLU(),
    nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * side * side, net["hidden"]), nn.ReLU(),
    nn.Linear(net["hidden"], net["classes"]))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(net["steps"]):
    x, y = torch.rand(net["batch"], 1, 28, 28), torch.randint(0, net["classes"], (net["batch"],))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
peak()
"""
)


def main() -> None:
    """Measure each network on each runtime."""
    parser = argparse.ArgumentParser(description="Peak memory of training.")
    parser.add_argument(
        "--torch-python", default="", metavar="PYTHON", help="An interpreter that has PyTorch."
    )
    torch = parser.parse_args().torch_python
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in NETWORKS.items():
            harness.say(name)
            peaks = {
                "fedless_mb": instance_mb(network, Path(folder, name)),
                "tensorflow_mb": other_mb(sys.executable, TENSORFLOW, network),
            }
            if torch:
                peaks["torch_mb"] = other_mb(torch, TORCH, network)
            ours = peaks["fedless_mb"]
            ratios = {f"{key[:-3]}_to_ours": value / ours for key, value in peaks.items() if value != ours}
            figures[name] = {key: round(value, 1) for key, value in (peaks | ratios).items()}
    without = {} if torch else {"torch": "not measured: name an interpreter that has it with --torch-python"}
    harness.finish("peak_rss", **figures, steps=STEPS, batch=10, repeats=REPEATS, **without)


def instance_mb(network: Network, folder: Path) -> float:
    """Peak of an instance of ours that trains, MB; the median of a few."""
    model = Model(
        [
            Conv2D(32, 5, activation="relu", padding=network.padding),
            MaxPool2D(2),
            Conv2D(64, 5, activation="relu", padding=network.padding),
            MaxPool2D(2),
            Flatten(),
            Dense(network.hidden, activation="relu"),
            Dense(network.classes),
        ],
        input=Input("x", (28, 28, 1), "float32", 0.0, 1.0),
        loss="softmax_cross_entropy",
        batch=network.batch,
    )
    build_function(model, folder, name="peak", version=1)
    random, count = np.random.default_rng(1), STEPS * network.batch
    np.savez(
        folder / "data.npz",
        x=random.random((count, 28, 28, 1), np.float32),
        y=random.integers(0, network.classes, count, np.int32),
    )
    job = Job(
        kind=JobKind.TRAIN,
        function_dir=str(folder),
        parameters=str(folder / "initial.f32"),
        data={"kind": "npz", "path": str(folder / "data.npz")},
        rule=ClientRule(Optimizer.ADAM, 1e-3),
        memory_mb=4096,
    )
    peaks = [Instance.start().run(job, timeout_ms=TIMEOUT_MS).peak_rss_mb for _ in range(REPEATS)]
    return harness.middle(peaks)


def other_mb(python: str, program: str, network: Network) -> float:
    """Peak of a fresh process of another runtime, MB; the median of a few."""
    given = json.dumps({**vars(network), "steps": STEPS})
    peaks = []
    for _ in range(REPEATS):
        done = subprocess.run(
            [python, "-c", program, given],
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_MS / 1000,
        )
        peaks.append(float(done.stdout))
    return harness.middle(peaks)


if __name__ == "__main__":
    main()
