"""One training step of the MNIST CNN in a fresh process of TensorFlow or PyTorch: from starting Python to its end.

The layers, the batch of 32 and the SGD of `examples/mnist`, on random numbers; a way of each library that starts soon:
one step without a compiled graph or a data pipeline, PyTorch's without `torch.optim`, whose first use imports a
compiler and takes as long again; as many threads as each takes by itself. Each may be another interpreter's: whoever
measures names it.
"""

from __future__ import annotations

import os
import subprocess
import time

TENSORFLOW = """
import os
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import tensorflow as tf
L = tf.keras.layers
model = tf.keras.Sequential([
    tf.keras.Input((28, 28, 1)), L.Conv2D(32, 5, activation="relu"), L.MaxPooling2D(2),
    L.Conv2D(64, 5, activation="relu"), L.MaxPooling2D(2), L.Flatten(), L.Dense(512, activation="relu"), L.Dense(10),
])
assert model.count_params() == 582026
loss, optimizer = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.keras.optimizers.SGD(0.01)
x, y = tf.random.uniform((32, 28, 28, 1)), tf.zeros((32,), tf.int32)
with tf.GradientTape() as tape:
    value = loss(y, model(x, training=True))
optimizer.apply_gradients(zip(tape.gradient(value, model.trainable_variables), model.trainable_variables))
float(model.trainable_variables[0][0, 0, 0, 0])
print("stepped", flush=True)
"""
TORCH = """
import torch
from torch import nn
model = nn.Sequential(
    nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
assert sum(p.numel() for p in model.parameters()) == 582026
nn.functional.cross_entropy(model(torch.rand(32, 1, 28, 28)), torch.zeros(32, dtype=torch.long)).backward()
with torch.no_grad():
    for parameter in model.parameters():
        parameter -= 0.01 * parameter.grad
print("stepped", flush=True)
"""
TIMEOUT_S = 300


def first_step_ms(python: str, program: str) -> float:
    """Milliseconds from starting a process of that interpreter until it has said that its step is done."""
    since = time.monotonic()
    argv = [python, "-c", program]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            took_ms = (time.monotonic() - since) * 1000
            _, said = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    if line.strip() != "stepped":
        message = f"{python} made no step: {said.strip()[-300:]}"
        raise RuntimeError(message)
    return took_ms


def _environment() -> dict[str, str]:
    """Ours without what belongs to our own interpreter."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "OPENBLAS_NUM_THREADS")
    }
