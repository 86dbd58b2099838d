"""A model for federated training: layers in a row, a loss, and all weights in one flat float32 vector.

`Model` gives the three functions that `convert` turns into signatures (training.md, section 1); the batch is
static, a partial one is masked by `weight`. The same functions run in TensorFlow, which is what `check`
compares with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedless.authoring import initial
from fedless.authoring.layers import Conv2D, Dropout, Layer, MaxPool2D, Shape, refuse
from fedless.authoring.ops import Tensor
from fedless.protocol import manifest

CROSS_ENTROPY, MSE = "softmax_cross_entropy", "mse"
METRICS = {CROSS_ENTROPY: ("correct",), MSE: ("absolute_error",)}


class Model:
    """Layers, an input and a loss.

    `layers` are named `dense`, `dense_1`, ... unless they have names. `input` is a `manifest.Input` (shape of
    one example). `loss` is `softmax_cross_entropy` (integer labels, the last layer gives logits [classes]) or
    `mse` (labels of the last layer's shape). `batch` is the static B. Initial weights come from `seed`.
    Raises `LocalError(MODEL_NOT_PORTABLE)` for layers that do not fit.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        input: manifest.Input,  # noqa: A002  (the manifest's word)
        loss: str = CROSS_ENTROPY,
        batch: int = 32,
        seed: int = 0,
    ) -> None:
        if loss not in METRICS:
            raise refuse("loss", f"{loss} is not one of {', '.join(METRICS)}", "Use one of them.")
        self.layers = list(layers)
        self.input = input
        self.loss = loss
        self.batch = batch
        _name(self.layers)
        self._shapes: list[list[Shape]] = []
        self.tensors: tuple[manifest.Tensor, ...] = ()
        self.randomness: tuple[manifest.Randomness, ...] = ()
        self._lay_out(seed)
        self._check_loss()

    def _lay_out(self, seed: int) -> None:
        """Names, shapes, offsets and first values of all weights."""
        random = np.random.Generator(np.random.PCG64(seed))
        tensors: list[manifest.Tensor] = []
        noise: list[manifest.Randomness] = []
        values: list[NDArray[np.float32]] = []
        shape, offset = self.input.shape, 0
        for layer in self.layers:
            weights = layer.weights(shape)
            self._shapes.append([weight.shape for weight in weights])
            for weight in weights:
                tensors.append(manifest.Tensor(f"{layer.name}/{weight.name}", weight.shape, offset))
                values.append(initial.draw(weight.initial, random, weight.shape).reshape(-1))
                offset += tensors[-1].size
            if isinstance(layer, Dropout):
                noise.append(manifest.Randomness(f"{layer.name}_mask", shape, layer.keep))
            shape = layer.output_shape(shape)
        if not tensors:
            raise refuse("The model", "it has no weights", "Add a layer that trains.")
        self.tensors, self.randomness = tuple(tensors), tuple(noise)
        self.output_shape = shape
        self.initial: NDArray[np.float32] = np.concatenate(values)

    def _check_loss(self) -> None:
        if self.loss == CROSS_ENTROPY and len(self.output_shape) != 1:
            raise refuse(
                "loss",
                f"{self.loss} needs logits [classes], the last layer gives {self.output_shape}",
                "Add a Dense.",
            )

    @property
    def parameters(self) -> int:
        """P, the length of the flat vector."""
        return self.initial.size

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` gives beside the loss."""
        return METRICS[self.loss]

    @property
    def label(self) -> manifest.Label:
        """What the label of one example looks like."""
        if self.loss == CROSS_ENTROPY:
            return manifest.Label("y", (), "int32", self.output_shape[0])
        return manifest.Label("y", self.output_shape, "float32")

    def specs(self, *, labels: bool, masks: bool) -> dict[str, Any]:
        """The inputs of a signature by name, as `tf.TensorSpec` with static shapes of rank 1 or more."""
        b = self.batch
        specs = {
            "params": tf.TensorSpec([self.parameters], tf.float32, "params"),
            self.input.name: tf.TensorSpec([b, *self.input.shape], self.input.dtype, self.input.name),
        }
        if labels:
            specs["y"] = tf.TensorSpec([b, *self.label.shape], self.label.dtype, "y")
            specs["weight"] = tf.TensorSpec([b], tf.float32, "weight")
        if masks:
            for item in self.randomness:
                specs[item.name] = tf.TensorSpec([b, *item.shape], tf.float32, item.name)
        return specs

    def grad(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grad float32[P] and loss float32[1], the mean over the weighted examples."""
        params, weight = inputs["params"], inputs["weight"]
        with tf.GradientTape() as tape:
            tape.watch(params)
            losses = self._losses(self._forward(params, inputs, training=True), inputs["y"])
            loss = tf.reduce_sum(losses * weight) / tf.maximum(tf.reduce_sum(weight), 1.0)
        return {"grad": tape.gradient(loss, params), "loss": tf.reshape(loss, [1])}

    def evaluate(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """loss_sum float32[1] and the metric float32[1], sums over the weighted examples."""
        weight, labels = inputs["weight"], inputs["y"]
        outputs = self._forward(inputs["params"], inputs, training=False)
        if self.loss == CROSS_ENTROPY:
            hits = tf.equal(tf.argmax(outputs, axis=1, output_type=tf.int32), labels)
            metric = tf.cast(hits, tf.float32)
        else:
            metric = tf.reduce_mean(self._per_example(tf.abs(outputs - labels)), axis=1)
        return {
            "loss_sum": tf.reshape(tf.reduce_sum(self._losses(outputs, labels) * weight), [1]),
            self.metrics[0]: tf.reshape(tf.reduce_sum(metric * weight), [1]),
        }

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs: probabilities for cross-entropy, otherwise what the last layer gives."""
        outputs = self._forward(inputs["params"], inputs, training=False)
        return {"outputs": tf.nn.softmax(outputs) if self.loss == CROSS_ENTROPY else outputs}

    def _losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example, [B]."""
        if self.loss == CROSS_ENTROPY:
            hot = tf.one_hot(labels, self.output_shape[0], dtype=tf.float32)
            return -tf.reduce_sum(hot * tf.nn.log_softmax(outputs), axis=1)
        error = outputs - labels
        return tf.reduce_mean(self._per_example(error * error), axis=1)

    def _per_example(self, x: Tensor) -> Tensor:
        return tf.reshape(x, [self.batch, math.prod(self.output_shape)])

    def _forward(self, params: Tensor, inputs: Mapping[str, Tensor], *, training: bool) -> Tensor:
        pieces = iter(tf.split(params, [tensor.size for tensor in self.tensors]))
        x, held = inputs[self.input.name], None
        for at, layer in enumerate(self.layers):
            weights = [tf.reshape(next(pieces), shape) for shape in self._shapes[at]]
            following = self.layers[at + 1] if at + 1 < len(self.layers) else None
            if isinstance(layer, Dropout):
                x = layer.masked(x, inputs[f"{layer.name}_mask"]) if training else x
            elif type(layer) is Conv2D and layer.monotone and type(following) is MaxPool2D:
                x, held = (
                    layer.convolve(weights, x),
                    (layer, weights),
                )  # bias and ReLU after the pool cost a quarter
            else:
                x = layer.apply(weights, x)
                if held is not None:
                    (convolution, convolution_weights), held = held, None
                    x = convolution.finish(convolution_weights, x)
        return x


def _name(layers: Sequence[Layer]) -> None:
    """Keras' way: `dense`, `dense_1`, ..."""
    counts: dict[str, int] = {}
    for layer in layers:
        base = layer.name or type(layer).__name__.lower()
        number = counts.get(base, 0)
        counts[base] = number + 1
        layer.name = f"{base}_{number}" if number else base
