"""Layers for sequences: Embedding, LSTM, GRU.

Recurrences are unrolled over a static number of time steps: TFLite's loops train ten times slower
(training.md). Gates come from `tf.split`, the input's product is made once for all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from fedless.authoring import ops
from fedless.authoring.layers import Layer, Shape, Weight, refuse
from fedless.authoring.ops import Tensor


class Embedding(Layer):
    """int32 [T] in 0..input_dim-1 -> float32 [T, output_dim]."""

    def __init__(self, input_dim: int, output_dim: int, name: str = "") -> None:
        super().__init__(name)
        self.input_dim = input_dim
        self.output_dim = output_dim

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """One table [input_dim, output_dim]."""
        if len(shape) != 1:
            raise refuse(self._label(), f"it takes a sequence [T], not {shape}", "Flatten before it.")
        return (Weight("embeddings", (self.input_dim, self.output_dim), "uniform"),)

    def output_shape(self, shape: Shape) -> Shape:
        """One row per element."""
        return (*shape, self.output_dim)

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """Rows of the table, as a product: the gradient of a gather has no TFLite operation."""
        rows = tf.one_hot(tf.reshape(x, [-1]), self.input_dim, dtype=tf.float32)
        rows = tf.reshape(rows, [x.shape[0] * x.shape[1], self.input_dim])
        return tf.reshape(ops.matmul(rows, weights[0]), [*x.shape, self.output_dim])


class _Recurrent(Layer):
    """[T, F] -> [units], or [T, units] with `return_sequences`."""

    gates = 0

    def __init__(self, units: int, *, return_sequences: bool = False, name: str = "") -> None:
        super().__init__(name)
        self.units = units
        self.return_sequences = return_sequences

    def output_shape(self, shape: Shape) -> Shape:
        """The last state, or all."""
        return (shape[0], self.units) if self.return_sequences else (self.units,)

    def _kernels(self, shape: Shape) -> tuple[Weight, Weight]:
        if len(shape) != 2:  # noqa: PLR2004
            raise refuse(
                self._label(), f"it takes a sequence [T, F], not {shape}", "Put an Embedding before it."
            )
        return (
            Weight("kernel", (shape[1], self.gates * self.units)),
            Weight("recurrent_kernel", (self.units, self.gates * self.units), "orthogonal"),
        )

    def _inputs(self, kernel: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        """The input's part of the gates for all time steps, [T * B, gates * units]."""
        b, steps, features = x.shape
        # Time first: then one step is a contiguous piece.
        flat = tf.reshape(tf.transpose(x, [1, 0, 2]), [steps * b, features])
        return ops.matmul(flat, kernel) + bias

    def _product(self, state: Tensor, recurrent: Tensor) -> Tensor:
        """One step's product; `ops.recurrence` has its gradient for the weights."""
        return ops.matmul(state, tf.stop_gradient(recurrent), repeated=True)

    def _result(self, states: list[Tensor]) -> Tensor:
        return tf.stack(states, axis=1) if self.return_sequences else states[-1]


class LSTM(_Recurrent):
    """Hochreiter and Schmidhuber 1997, with Keras' gates and defaults."""

    gates = 4

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """Kernel [F, 4u], recurrent kernel [u, 4u], bias [4u]; gates in the order i, f, c, o."""
        return (*self._kernels(shape), Weight("bias", (4 * self.units,), "forget"))

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' LSTM."""
        kernel, recurrent, bias = weights
        cell = None
        states: list[Tensor] = []
        inputs = ops.recurrence(self._inputs(kernel, bias, x), recurrent, states)
        for part in tf.split(inputs, x.shape[1], 0):
            gates = part + self._product(states[-1], recurrent) if states else part
            i, f, c, o = tf.split(gates, 4, 1)
            fresh = tf.sigmoid(i) * tf.tanh(c)
            cell = fresh if cell is None else tf.sigmoid(f) * cell + fresh
            states.append(tf.sigmoid(o) * tf.tanh(cell))
        return self._result(states)


class GRU(_Recurrent):
    """Cho et al. 2014 in the variant with `reset_after` (Keras' default)."""

    gates = 3

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """Kernel [F, 3u], recurrent kernel [u, 3u], bias [2, 3u]; gates in the order z, r, h."""
        return (*self._kernels(shape), Weight("bias", (2, 3 * self.units), "zeros"))

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' GRU."""
        kernel, recurrent, bias = weights
        outer, inner = (tf.reshape(part, [3 * self.units]) for part in tf.split(bias, 2, 0))
        states: list[Tensor] = []
        inputs = self._inputs(kernel, outer, x)
        biases = ops.recurrence(0.0 * inputs + inner, recurrent, states)
        steps = x.shape[1]
        for part, own in zip(tf.split(inputs, steps, 0), tf.split(biases, steps, 0), strict=True):
            xz, xr, xh = tf.split(part, 3, 1)
            hz, hr, hh = tf.split(own + self._product(states[-1], recurrent) if states else own, 3, 1)
            update = tf.sigmoid(xz + hz)
            candidate = tf.tanh(xh + tf.sigmoid(xr + hr) * hh)
            fresh = (1.0 - update) * candidate
            states.append(update * states[-1] + fresh if states else fresh)
        return self._result(states)
