"""Layers with Keras-like names, made of operations that train with TFLite's builtin ones.

A layer says which weights it needs and what shape it gives, and applies itself; `model.Model` lays the
weights out in the flat vector. Shapes are those of one example, without the batch; `apply` sees the batch as
a static first dimension. An author's own layer is a subclass of `Layer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from fedless.authoring import ops
from fedless.authoring.ops import Tensor
from fedless.protocol.errors import Code, LocalError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A tensor that a layer trains; `initial` is a name in `initial.INITIALIZERS`."""

    name: str
    shape: Shape
    initial: str = "glorot"


def refuse(layer: str, what: str, instead: str) -> LocalError:
    """The error for a layer that cannot be had, in the author's words."""
    return LocalError(Code.MODEL_NOT_PORTABLE, f"{layer}: {what}.", fix=instead)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": ops.relu,
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "softplus": tf.math.softplus,
}


def activation(name: str | None, layer: str) -> Callable[[Tensor], Tensor]:
    """The function of this name. Raises `LocalError(MODEL_NOT_PORTABLE)`."""
    found = ACTIVATIONS.get(name or "linear")
    if found is None:
        raise refuse(
            layer, f"the activation {name} does not train here", f"Use one of {', '.join(ACTIVATIONS)}."
        )
    return found


class Layer:
    """Base of all layers: an identity without weights."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """What it trains, for inputs of `shape`; `LocalError(MODEL_NOT_PORTABLE)` if they do not fit."""
        del shape
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of its output for one example."""
        return shape

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """The output [B, *output_shape] for x [B, *shape], `weights` in the order of `weights()`."""
        del weights
        return x

    def _label(self) -> str:
        return self.name or type(self).__name__


class Dense(Layer):
    """[..., K] -> [..., units]: a product, a bias, an activation."""

    def __init__(self, units: int, activation: str | None = None, name: str = "") -> None:
        super().__init__(name)
        self.units = units
        self.activation = activation

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """Kernel [K, units], bias [units]."""
        activation(self.activation, self._label())
        if not shape:
            raise refuse(self._label(), "it needs an input with at least one dimension", "Give it a vector.")
        return Weight("kernel", (shape[-1], self.units)), Weight("bias", (self.units,), "zeros")

    def output_shape(self, shape: Shape) -> Shape:
        """The last dimension becomes `units`."""
        return (*shape[:-1], self.units)

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' Dense."""
        kernel, bias = weights
        flat = tf.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
        y = activation(self.activation, self._label())(ops.matmul(flat, kernel) + bias)
        return tf.reshape(y, [*x.shape[:-1], self.units])


class Conv2D(Layer):
    """[H, W, C] -> [H', W', filters], stride 1, padding `valid` or `same`."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        activation: str | None = None,
        padding: str = "valid",
        name: str = "",
    ) -> None:
        super().__init__(name)
        self.filters = filters
        self.kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.activation = activation
        self.padding = padding

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """Kernel [K, L, C, filters], bias [filters]."""
        activation(self.activation, self._label())
        if len(shape) != 3 or self.padding not in ("valid", "same"):  # noqa: PLR2004
            raise refuse(
                self._label(), f"it does not fit {shape} with padding {self.padding}", "Use [H, W, C]."
            )
        if min(self.output_shape(shape)) < 1:
            raise refuse(
                self._label(), f"the kernel {self.kernel} is larger than {shape}", "Use a smaller one."
            )
        return (
            Weight("kernel", (*self.kernel, shape[2], self.filters)),
            Weight("bias", (self.filters,), "zeros"),
        )

    def output_shape(self, shape: Shape) -> Shape:
        """Height and width shrink by the kernel less 1, or stay with `same`."""
        if self.padding == "same":
            return (*shape[:2], self.filters)
        return (shape[0] - self.kernel[0] + 1, shape[1] - self.kernel[1] + 1, self.filters)

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' Conv2D."""
        return self.finish(weights, self.convolve(weights, x))

    def convolve(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """The convolution alone."""
        if self.padding == "same":
            sides = [((size - 1) // 2, size // 2) for size in self.kernel]
            x = tf.pad(x, [[0, 0], list(sides[0]), list(sides[1]), [0, 0]])
        return ops.conv2d(x, weights[0])

    def finish(self, weights: Sequence[Tensor], y: Tensor) -> Tensor:
        """Bias and activation."""
        return activation(self.activation, self._label())(y + weights[1])

    @property
    def monotone(self) -> bool:
        """Whether a maximum may be taken before bias and activation: the result is the same, at a quarter."""
        return self.activation in (None, "linear", "relu")


class _Pool(Layer):
    """[H, W, C] -> [H // size, W // size, C]; windows do not overlap, the rest is left out."""

    def __init__(self, pool_size: int = 2, name: str = "") -> None:
        super().__init__(name)
        self.size = pool_size

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """None; checks that a window fits."""
        if len(shape) != 3 or min(self.output_shape(shape)) < 1:  # noqa: PLR2004
            raise refuse(self._label(), f"a window of {self.size} does not fit {shape}", "Use [H, W, C].")
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """Height and width are divided by the window's size."""
        return (shape[0] // self.size, shape[1] // self.size, *shape[2:])


class MaxPool2D(_Pool):
    """The largest value of each window."""

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' MaxPool2D with its default stride."""
        del weights
        return ops.max_pool(x, self.size)


class AveragePool2D(_Pool):
    """The mean of each window."""

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' AveragePool2D with its default stride."""
        del weights
        return ops.average_pool(x, self.size)


class GlobalAveragePool2D(Layer):
    """[H, W, C] -> [C]."""

    def output_shape(self, shape: Shape) -> Shape:
        """The channels."""
        return shape[2:]

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """The mean over height and width."""
        del weights
        return tf.reduce_mean(x, axis=[1, 2])


class Flatten(Layer):
    """Any shape -> one dimension."""

    def output_shape(self, shape: Shape) -> Shape:
        """The number of elements."""
        return (math.prod(shape),)

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """A reshape."""
        del weights
        return tf.reshape(x, [x.shape[0], math.prod(x.shape[1:])])


class Activation(Layer):
    """An activation as a layer of its own."""

    def __init__(self, activation: str, name: str = "") -> None:
        super().__init__(name)
        self.activation = activation

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """None; checks the name."""
        del shape
        activation(self.activation, self._label())
        return ()

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """The activation of x."""
        del weights
        return activation(self.activation, self._label())(x)


class Dropout(Layer):
    """Training only: each element is dropped with probability `rate`, the others are scaled up.

    The mask comes from the client (manifest: randomness), because a random operation in a graph gives every
    device the same numbers.
    """

    def __init__(self, rate: float, name: str = "") -> None:
        super().__init__(name)
        if not 0.0 <= rate < 1.0:
            raise refuse(self._label(), f"rate must be in 0..1, is {rate}", "Use 0.5 or less.")
        self.keep = 1.0 - rate

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """X times the mask (values 0 and 1/keep)."""
        return x * mask


class LayerNorm(Layer):
    """Each example's last dimension to mean 0 and variance 1, then scale and shift (Ba et al. 2016)."""

    def __init__(self, epsilon: float = 1e-3, name: str = "") -> None:
        super().__init__(name)
        self.epsilon = epsilon

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """Gamma and beta [C]."""
        return Weight("gamma", shape[-1:], "ones"), Weight("beta", shape[-1:], "zeros")

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' LayerNormalization over the last axis."""
        return _normalised(x, [x.shape.rank - 1], self.epsilon) * weights[0] + weights[1]


class GroupNorm(Layer):
    """[H, W, C]: each group of channels to mean 0 and variance 1, then scale and shift (Wu and He 2018).

    The choice for federated learning: batch normalisation's running statistics are not weights, and differ by
    client.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-3, name: str = "") -> None:
        super().__init__(name)
        self.groups = groups
        self.epsilon = epsilon

    def weights(self, shape: Shape) -> Sequence[Weight]:
        """Gamma and beta [C]."""
        if shape[-1] % self.groups:
            raise refuse(
                self._label(), f"{shape[-1]} channels do not divide into {self.groups} groups", "Change one."
            )
        return Weight("gamma", shape[-1:], "ones"), Weight("beta", shape[-1:], "zeros")

    def apply(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """As Keras' GroupNormalization over the last axis."""
        channels = x.shape[-1]
        grouped = tf.reshape(x, [x.shape[0], math.prod(x.shape[1:-1]), self.groups, channels // self.groups])
        return tf.reshape(_normalised(grouped, [1, 3], self.epsilon), x.shape) * weights[0] + weights[1]


def _normalised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - tf.reduce_mean(x, axis=axes, keepdims=True)
    variance = tf.reduce_mean(centred * centred, axis=axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon)
