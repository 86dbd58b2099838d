"""The four models of FedLess (Grafberger et al. 2021, arXiv 2111.03396): for our builder, for TensorFlow, for PyTorch.

The same layers, batch and optimiser three times over. The other two are texts: each runs in a fresh process, PyTorch in
an environment of its own. In them, `data` has the arrays x and y; `peak()` prints what the process took at most, MB.
Shakespeare reads real text where it is given; Speech's examples are random numbers of a spectrogram's shape, since
there are no recordings here. What a step needs does not depend on the values.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedless.authoring.layers import Conv2D, Dense, Dropout, Flatten, GlobalAveragePool2D, Layer, MaxPool2D
from fedless.authoring.recurrent import LSTM, Embedding
from fedless.protocol.manifest import Input
from fedless.protocol.messages import ClientRule, Optimizer

ADAM = ClientRule(Optimizer.ADAM, 1e-3)
TEXT = Path("shakespeare", "tinyshakespeare.txt.gz")
PEAK = """
import json, sys, numpy as np
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            print(int(line.split()[1]) / 1024, flush=True)
data = np.load(sys.argv[1])
x, y = data["x"], data["y"]
batch = int(sys.argv[2])
"""
TENSORFLOW = (
    """
import os
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
"""
    + PEAK
    + """
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
L, O = tf.keras.layers, tf.keras.optimizers
model = tf.keras.Sequential([tf.keras.Input(x.shape[1:], dtype=x.dtype), LAYERS])
model.compile(OPTIMIZER, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, y, batch_size=batch, epochs=1, verbose=0)
peak()
"""
)
TORCH = (
    PEAK
    + """
import torch
from torch import nn
torch.set_num_threads(1)
class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]
class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))
if x.ndim == 4:
    x = x.transpose(0, 3, 1, 2)
x, y = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))
model = nn.Sequential(LAYERS)
optimizer = torch.optim.OPTIMIZER
for at in range(0, len(y), batch):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[at:at + batch]), y[at:at + batch]).backward()
    optimizer.step()
peak()
"""
)


@dataclass(frozen=True)
class Network:
    """A model: ours as layers, the others' as their layers and optimiser in their own language."""

    layers: Callable[[], Sequence[Layer]]
    input: Input
    classes: int
    batch: int
    rule: ClientRule
    tensorflow: tuple[str, str]
    torch: tuple[str, str]

    def program(self, runtime: str) -> str:
        """A program that trains it with `runtime`: its arguments are the .npz of the examples, and the batch."""
        (layers, optimizer), text = {
            "tensorflow": (self.tensorflow, TENSORFLOW),
            "torch": (self.torch, TORCH),
        }[runtime]
        return text.replace("LAYERS", layers).replace("OPTIMIZER", optimizer)

    def examples(self, count: int, folder: Path) -> tuple[dict[str, NDArray[Any]], str]:
        """`count` examples, and what they are; sequences from the text in `folder`, where it is."""
        random = np.random.default_rng(1)
        if self.input.dtype != "int32":
            x = random.random((count, *self.input.shape), np.float32)
            return {"x": x, "y": random.integers(0, self.classes, count, np.int32)}, "random"
        text = folder / TEXT
        if not text.is_file():
            x = random.integers(0, self.classes, (count, *self.input.shape), np.int32)
            return {"x": x, "y": random.integers(0, self.classes, count, np.int32)}, f"random: no {text.name}"
        return windows(gzip.decompress(text.read_bytes()).decode(), count, self.input.shape[0]), text.name


def windows(text: str, count: int, length: int) -> dict[str, NDArray[Any]]:
    """`count` windows of `length` characters, and the one after each."""
    alphabet = {char: number for number, char in enumerate(sorted(set(text)))}
    codes = np.array([alphabet[char] for char in text], np.int32)
    at = np.random.default_rng(1).choice(len(codes) - length, count, replace=False)
    return {"x": np.stack([codes[a : a + length] for a in at]), "y": codes[at + length]}


def _images(padding: str, hidden: int, classes: int) -> Network:
    """Two convolutions of 5x5 with pooling behind each, a hidden layer, an output layer."""
    side, pad = (7, 2) if padding == "same" else (4, 0)
    dense = (f"nn.Linear({64 * side * side}, {hidden})", f"nn.Linear({hidden}, {classes})")
    keras = [
        f'L.Conv2D({filters}, 5, activation="relu", padding="{padding}"), L.MaxPooling2D(2)'
        for filters in (32, 64)
    ]
    torch = [
        f"nn.Conv2d({a}, {b}, 5, padding={pad}), nn.ReLU(), nn.MaxPool2d(2)" for a, b in ((1, 32), (32, 64))
    ]
    return Network(
        layers=lambda: [
            Conv2D(32, 5, activation="relu", padding=padding),
            MaxPool2D(2),
            Conv2D(64, 5, activation="relu", padding=padding),
            MaxPool2D(2),
            Flatten(),
            Dense(hidden, activation="relu"),
            Dense(classes),
        ],
        input=Input("x", (28, 28, 1), "float32", 0.0, 1.0),
        classes=classes,
        batch=10,
        rule=ADAM,
        tensorflow=(
            f'{", ".join(keras)}, L.Flatten(), L.Dense({hidden}, activation="relu"), L.Dense({classes})',
            "O.Adam(1e-3)",
        ),
        torch=(
            f"{', '.join(torch)}, nn.Flatten(), {', nn.ReLU(), '.join(dense)}",
            "Adam(model.parameters(), 1e-3)",
        ),
    )


def _shakespeare(length: int) -> Network:
    """The next of 82 characters after `length`: an embedding, two LSTMs of 256 units, unrolled in ours."""
    return Network(
        layers=lambda: [Embedding(82, 8), LSTM(256, return_sequences=True), LSTM(256), Dense(82)],
        input=Input("x", (length,), "int32", 0.0, 81.0),
        classes=82,
        batch=32,
        rule=ClientRule(Optimizer.SGD, 0.8),
        tensorflow=(
            "L.Embedding(82, 8), L.LSTM(256, return_sequences=True), L.LSTM(256), L.Dense(82)",
            "O.SGD(0.8)",
        ),
        torch=(
            "nn.Embedding(82, 8), nn.LSTM(8, 256, num_layers=2, batch_first=True), Last(), nn.Linear(256, 82)",
            "SGD(model.parameters(), 0.8)",
        ),
    )


def _speech() -> Network:
    """35 words from mel spectrograms of 32x32: four convolutions, two pools, two dropouts."""
    pairs = [(1, 32), (32, 32), (32, 64), (64, 64)]
    keras = [f'L.Conv2D({b}, 3, activation="relu", padding="same")' for _, b in pairs]
    torch = [f"nn.Conv2d({a}, {b}, 3, padding=1), nn.ReLU()" for a, b in pairs]
    pools = ("L.MaxPooling2D(2), L.Dropout(0.25)", "nn.MaxPool2d(2), nn.Dropout(0.25)")
    ends = ("L.GlobalAveragePooling2D(), L.Dense(35)", "Mean(), nn.Linear(64, 35)")
    texts = [
        ", ".join((*layers[:2], pool, *layers[2:], pool, end))
        for layers, pool, end in zip((keras, torch), pools, ends, strict=True)
    ]
    return Network(
        layers=lambda: [
            Conv2D(32, 3, activation="relu", padding="same"),
            Conv2D(32, 3, activation="relu", padding="same"),
            MaxPool2D(2),
            Dropout(0.25),
            Conv2D(64, 3, activation="relu", padding="same"),
            Conv2D(64, 3, activation="relu", padding="same"),
            MaxPool2D(2),
            Dropout(0.25),
            GlobalAveragePool2D(),
            Dense(35),
        ],
        input=Input("x", (32, 32, 1), "float32"),
        classes=35,
        batch=5,
        rule=ADAM,
        tensorflow=(texts[0], "O.Adam(1e-3)"),
        torch=(texts[1], "Adam(model.parameters(), 1e-3)"),
    )


NETWORKS: dict[str, Network] = {
    "mnist_cnn_582026": _images("valid", 512, 10),
    "femnist_cnn_6603710": _images("same", 2048, 62),
    "shakespeare_lstm_818402": _shakespeare(80),
    "speech_cnn_67267": _speech(),
}
