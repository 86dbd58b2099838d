"""Small models in plain numpy for benchmarks, and clients that train them with the device's own loop.

A net is what `edge_runtime.loops` calls a graph: named arrays in, `grad` and `loss` out. So local training, the
optimisers and the client rules are the product's; only the TFLite runtime is left out, which would take most of the
time and change nothing of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import loops
from edge_runtime.data import Dataset
from edge_runtime.rules import Given
from fedless.protocol.manifest import Input, Label, Model
from fedless.protocol.messages import ClientRule

Array = NDArray[Any]
Floats = NDArray[np.float32]


class Net(Protocol):
    """A model over one flat vector."""

    parameters: int
    model: Model

    def initial(self, seed: int) -> Floats:
        """The weights to start from."""
        ...

    def __call__(self, *, params: Array, x: Array, y: Array, weight: Array) -> Mapping[str, Array]:
        """`grad` [P] and `loss` [1]: means over the batch's weights."""
        ...

    def judge(self, params: Array, x: Array, y: Array) -> tuple[float, float]:
        """Mean loss and accuracy."""
        ...


def softmax_loss(logits: Array, y: Array, weight: Array) -> tuple[float, Array]:
    """The weighted mean cross-entropy, and its gradient by the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    rows, share = np.arange(len(y)), weight / max(float(weight.sum()), 1.0)
    loss = float((share * (np.log(total[:, 0]) - shifted[rows, y])).sum())
    gradient = exp / total
    gradient[rows, y] -= 1.0
    return loss, gradient * share[:, None]


class Mlp:
    """784-`hidden`-10 with ReLU, for MNIST as float32 from 0 to 1."""

    def __init__(self, hidden: int = 32, batch: int = 10) -> None:
        self.shapes = ((784, hidden), (hidden,), (hidden, 10), (10,))
        self.parameters = sum(int(np.prod(shape)) for shape in self.shapes)
        inputs, labels = (Input("x", (784,)),), (Label("y", classes=10),)
        self.model = Model(self.parameters, batch, "cross_entropy", "", (), inputs, labels)

    def initial(self, seed: int) -> Floats:
        """He's, biases 0."""
        random = np.random.default_rng(seed)
        parts = [
            random.standard_normal(s) * np.sqrt(2 / s[0]) if len(s) > 1 else np.zeros(s) for s in self.shapes
        ]
        return np.concatenate([part.ravel() for part in parts]).astype(np.float32)

    def split(self, vector: Array) -> list[Array]:
        """The tensors in a flat vector."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        return [
            part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), self.shapes, strict=True)
        ]

    def __call__(self, *, params: Array, x: Array, y: Array, weight: Array) -> Mapping[str, Array]:
        """See `Net`."""
        w0, b0, w1, b1 = self.split(params)
        hidden = np.maximum(x @ w0 + b0, 0)
        loss, top = softmax_loss(hidden @ w1 + b1, y, weight)
        below = (top @ w1.T) * (hidden > 0)
        parts = (x.T @ below, below.sum(0), hidden.T @ top, top.sum(0))
        return {
            "grad": np.concatenate([part.ravel() for part in parts]).astype(params.dtype),
            "loss": np.array([loss]),
        }

    def judge(self, params: Array, x: Array, y: Array) -> tuple[float, float]:
        """See `Net`."""
        w0, b0, w1, b1 = self.split(params)
        logits = np.maximum(x @ w0 + b0, 0) @ w1 + b1
        loss, _ = softmax_loss(logits, y, np.ones(len(y)))
        return loss, float((logits.argmax(1) == y).mean())


class Lstm:
    """Embedding, one LSTM layer, dense: the next character after `length` ones."""

    def __init__(
        self, classes: int, embedding: int = 8, hidden: int = 48, length: int = 20, batch: int = 16
    ) -> None:
        self.hidden = hidden
        self.shapes = (
            (classes, embedding),
            (embedding + hidden, 4 * hidden),
            (4 * hidden,),
            (hidden, classes),
            (classes,),
        )
        self.parameters = sum(int(np.prod(shape)) for shape in self.shapes)
        inputs, labels = (Input("x", (length,), "int32"),), (Label("y", classes=classes),)
        self.model = Model(self.parameters, batch, "cross_entropy", "", (), inputs, labels)

    def initial(self, seed: int) -> Floats:
        """Glorot's; the forget gate's bias 1."""
        random = np.random.default_rng(seed)
        parts = [
            random.standard_normal(s) / np.sqrt(s[0]) if len(s) > 1 else np.zeros(s) for s in self.shapes
        ]
        parts[0] *= np.sqrt(self.shapes[0][0]) * 0.1
        parts[2][self.hidden : 2 * self.hidden] = 1.0
        return np.concatenate([part.ravel() for part in parts]).astype(np.float32)

    split = Mlp.split

    def _forward(self, parts: Sequence[Array], x: Array) -> tuple[list[tuple[Array, ...]], Array]:
        embedding, w, b = parts[:3]
        h = np.zeros((len(x), self.hidden), w.dtype)
        c, steps = np.zeros_like(h), []
        for t in range(x.shape[1]):
            inside = np.concatenate([embedding[x[:, t]], h], axis=1)
            i, f, g, o = np.split(inside @ w + b, 4, axis=1)
            i, f, o, g = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o)), np.tanh(g)
            before, c = c, f * c + i * g
            tanh = np.tanh(c)
            h = o * tanh
            steps.append((inside, i, f, g, o, before, tanh))
        return steps, h

    def __call__(self, *, params: Array, x: Array, y: Array, weight: Array) -> Mapping[str, Array]:
        """See `Net`."""
        parts = self.split(params)
        embedding, w, _, top, bias = parts
        steps, h = self._forward(parts, x)
        loss, out = softmax_loss(h @ top + bias, y, weight)
        grads = [np.zeros_like(part) for part in parts]
        grads[3], grads[4] = h.T @ out, out.sum(0)
        dh, dc = out @ top.T, np.zeros_like(h)
        for t in reversed(range(x.shape[1])):
            inside, i, f, g, o, before, tanh = steps[t]
            dc = dc + dh * o * (1 - tanh * tanh)
            gates = (
                dc * g * i * (1 - i),
                dc * before * f * (1 - f),
                dc * i * (1 - g * g),
                dh * tanh * o * (1 - o),
            )
            below = np.concatenate(gates, axis=1)
            grads[1] += inside.T @ below
            grads[2] += below.sum(0)
            back = below @ w.T
            np.add.at(grads[0], x[:, t], back[:, : embedding.shape[1]])
            dh, dc = back[:, embedding.shape[1] :], dc * f
        return {
            "grad": np.concatenate([part.ravel() for part in grads]).astype(params.dtype),
            "loss": np.array([loss]),
        }

    def judge(self, params: Array, x: Array, y: Array) -> tuple[float, float]:
        """See `Net`."""
        parts = self.split(params)
        _, h = self._forward(parts, x)
        logits = h @ parts[3] + parts[4]
        loss, _ = softmax_loss(logits, y, np.ones(len(y)))
        return loss, float((logits.argmax(1) == y).mean())


@dataclass
class Client:
    """One client with its examples; it trains as a device does."""

    net: Net
    x: Array
    y: Array

    def __post_init__(self) -> None:
        """The batch arrays, made once."""
        dataset = Dataset({"x": self.x, "y": self.y}, self.net.model)
        self._feed = loops.Feed(self.net.model, dataset, labels=True)
        self._indices = np.arange(len(self.y))

    def train(
        self, start: Floats, rule: ClientRule, control: Floats | None = None, own: Floats | None = None
    ) -> loops.Result:
        """The device's loop, on a model; with what its rule needs beside it."""
        loss = self.net.judge(start, self.x, self.y)[0] if rule.fair_q else 0.0
        work = loops.Work(self.net.model, self.net, self._feed, self._indices, start)
        return loops.train(work, rule, lambda _event: None, Given(loss, control, own))
