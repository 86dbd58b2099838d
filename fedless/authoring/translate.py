"""A Keras model made of supported layers becomes a `Model`, weights included.

A softmax at the end is left out: the loss softmax_cross_entropy has it. Layers with a state of their own
(batch normalisation) or strides are refused with what to use instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedless.authoring.layers import (
    Activation,
    AveragePool2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool2D,
    refuse,
)
from fedless.authoring.model import CROSS_ENTROPY, Model
from fedless.authoring.recurrent import GRU, LSTM, Embedding
from fedless.protocol.manifest import Input

Keras = Any
"""A Keras object; Keras has no types."""
_INSTEAD = {
    "BatchNormalization": "Use GroupNormalization: running statistics are not weights and differ by client.",
    "SeparableConv2D": "Use Conv2D.",
    "DepthwiseConv2D": "Use Conv2D.",
    "SimpleRNN": "Use LSTM or GRU.",
    "Bidirectional": "Use one LSTM or GRU.",
}
_FUSED = {"sigmoid", "tanh", "softplus", "relu", "linear"}


def translate(
    keras_model: Keras,
    *,
    loss: str = CROSS_ENTROPY,
    batch: int = 32,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Model:
    """The author: the same model, with the same weights, that trains on devices.

    `minimum` and `maximum` bound the input (the manifest's range; uint8 images are mapped onto it). Raises
    `LocalError(MODEL_NOT_PORTABLE)` naming the layer that has no counterpart.
    """
    pairs = [(layer, _layer(layer)) for layer in keras_model.layers if type(layer).__name__ != "InputLayer"]
    _check_sequence(keras_model)
    shape = tuple(int(size) for size in keras_model.input_shape[1:])
    dtype = "int32" if type(pairs[0][0]).__name__ == "Embedding" else "float32"
    if dtype == "int32" and minimum is None:
        minimum, maximum = 0.0, float(pairs[0][0].input_dim - 1)
    layers = [layer for _, layer in pairs if layer is not None]
    model = Model(layers, input=Input("x", shape, dtype, minimum, maximum), loss=loss, batch=batch)
    values = [
        np.asarray(value, np.float32)
        for keras_layer, layer in pairs
        if layer is not None
        for value in keras_layer.get_weights()
    ]
    for tensor, value in zip(model.tensors, values, strict=True):
        model.initial[tensor.offset : tensor.offset + tensor.size] = value.reshape(tensor.shape).reshape(-1)
    return model


def _layer(layer: Keras) -> Layer | None:
    """Our counterpart of one Keras layer; None for one that changes nothing here (softmax at the end)."""
    kind, name = type(layer).__name__, layer.name
    make = _MAKERS.get(kind)
    if make is None:
        raise refuse(
            f"{name} ({kind})", "it has no counterpart", _INSTEAD.get(kind, f"Use {', '.join(_MAKERS)}.")
        )
    return make(layer)


def _check_sequence(keras_model: Keras) -> None:
    """Each layer used once, in a row; a functional model's bare operations (`a + b`) are no layers."""
    operations = getattr(keras_model, "operations", keras_model.layers)
    for operation in operations:
        inbound = operation._inbound_nodes  # noqa: SLF001  (Keras has no public way to see the edges)
        merges = any(len(node.input_tensors) > 1 for node in inbound)
        if len(inbound) > 1 or merges or operation not in keras_model.layers:
            raise refuse(
                operation.name,
                "it is shared, merges several inputs or is no layer",
                "Use layers one after another.",
            )


def _activation(layer: Keras) -> str | None:
    name = str(layer.activation.__name__)
    if name == "softmax":
        return None
    if name not in _FUSED:
        raise refuse(
            layer.name, f"the activation {name} does not train here", f"Use {', '.join(sorted(_FUSED))}."
        )
    return name


def _need(layer: Keras, condition: object, what: str, instead: str) -> None:
    if not condition:
        raise refuse(f"{layer.name} ({type(layer).__name__})", what, instead)


def _dense(layer: Keras) -> Layer:
    _need(layer, layer.use_bias, "it has no bias", "Use use_bias=True.")
    return Dense(layer.units, _activation(layer), layer.name)


def _conv2d(layer: Keras) -> Layer:
    plain = tuple(layer.strides) == (1, 1) and tuple(layer.dilation_rate) == (1, 1) and layer.groups == 1
    _need(layer, plain, "it has strides, dilation or groups", "Use strides=1 and a pooling layer.")
    _need(layer, layer.use_bias, "it has no bias", "Use use_bias=True.")
    return Conv2D(layer.filters, tuple(layer.kernel_size), _activation(layer), layer.padding, layer.name)


def _pool(maker: Callable[..., Layer]) -> Callable[[Keras], Layer]:
    def make(layer: Keras) -> Layer:
        size = tuple(layer.pool_size)
        plain = size[0] == size[1] and tuple(layer.strides) == size and layer.padding == "valid"
        _need(layer, plain, "its windows overlap, are padded or not square", "Use pool_size=n alone.")
        return maker(size[0], layer.name)

    return make


def _recurrent(maker: Callable[..., Layer]) -> Callable[[Keras], Layer]:
    def make(layer: Keras) -> Layer:
        usual = layer.activation.__name__ == "tanh" and layer.recurrent_activation.__name__ == "sigmoid"
        plain = not (layer.go_backwards or layer.stateful or layer.dropout or layer.recurrent_dropout)
        whole = layer.use_bias and getattr(layer, "reset_after", True)
        _need(layer, usual and plain and whole, "it departs from Keras' defaults", "Use the defaults.")
        return maker(layer.units, return_sequences=layer.return_sequences, name=layer.name)

    return make


def _layer_norm(layer: Keras) -> Layer:
    whole = layer.center and layer.scale and list(np.atleast_1d(layer.axis)) in ([-1], [layer.input.ndim - 1])
    _need(layer, whole, "it does not normalise the last axis with scale and centre", "Use the defaults.")
    return LayerNorm(layer.epsilon, layer.name)


def _group_norm(layer: Keras) -> Layer:
    whole = layer.center and layer.scale and layer.axis in (-1, layer.input.ndim - 1)
    _need(layer, whole and layer.groups > 0, "it departs from the usual", "Use the defaults and groups > 0.")
    return GroupNorm(layer.groups, layer.epsilon, layer.name)


def _named_activation(layer: Keras) -> Layer | None:
    name = _activation(layer)
    return None if name is None else Activation(name, layer.name)


def _relu(layer: Keras) -> Layer:
    plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
    _need(layer, plain, "it has a slope or a bound", "Use relu as it is.")
    return Activation("relu", layer.name)


_MAKERS: dict[str, Callable[[Keras], Layer | None]] = {
    "Dense": _dense,
    "Conv2D": _conv2d,
    "MaxPooling2D": _pool(MaxPool2D),
    "AveragePooling2D": _pool(AveragePool2D),
    "GlobalAveragePooling2D": lambda layer: GlobalAveragePool2D(layer.name),
    "Embedding": lambda layer: Embedding(layer.input_dim, layer.output_dim, layer.name),
    "LSTM": _recurrent(LSTM),
    "GRU": _recurrent(GRU),
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "Dropout": lambda layer: Dropout(layer.rate, layer.name),
    "Flatten": lambda layer: Flatten(layer.name),
    "Activation": _named_activation,
    "ReLU": _relu,
    "Softmax": lambda _: None,
}
