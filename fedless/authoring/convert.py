"""A `Model` becomes a .tflite with the signatures grad, evaluate and infer, builtin operations only.

An operation that has no builtin counterpart is explained in the author's words: which layer it comes from and
what to use instead.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from fedless.authoring.layers import Flatten, Layer
from fedless.authoring.model import MSE, Model
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input

SIGNATURES = ("grad", "evaluate", "infer")
_INSTEAD = {
    "ReluGrad": "relu: write tf.maximum(x, 0.0), or use the activation 'relu' of these layers",
    "EluGrad": "elu: use relu or softplus",
    "LeakyReluGrad": "leaky relu: write tf.maximum(x, 0.2 * x)",
    "SparseSoftmaxCrossEntropyWithLogits": "sparse cross-entropy: use the loss softmax_cross_entropy",
    "SoftmaxCrossEntropyWithLogits": "cross-entropy: use the loss softmax_cross_entropy",
    "Conv2DBackpropFilter": "a convolution's gradient: use the layer Conv2D of these layers",
    "Conv2DBackpropInput": "a convolution's gradient: use the layer Conv2D of these layers",
    "DepthwiseConv2dNative": "a depthwise convolution: use Conv2D",
    "MaxPoolGrad": "max pooling: use the layer MaxPool2D of these layers",
    "AvgPoolGrad": "average pooling: use the layer AveragePool2D of these layers",
    "TensorListReserve": "a recurrent layer: use LSTM or GRU of these layers (unrolled)",
    "StridedSliceGrad": "x[:, a:b]: write tf.split",
    "Erf": "gelu: use relu, tanh or softplus",
    "ExtractImagePatches": "extract_patches: use Conv2D",
    "IndexedSlices": "a gather from weights: use the layer Embedding of these layers",
    "RandomStandardNormal": "random numbers: use the layer Dropout; devices must not share their noise",
    "RandomUniform": "random numbers: use the layer Dropout; devices must not share their noise",
}
_OPERATION = re.compile(r"tf\.(\w+)|'(\w+)' op|^\s*(\w+)\s*$", re.MULTILINE)


def convert(model: Model) -> bytes:
    """The .tflite of `model`. Raises `LocalError(MODEL_NOT_PORTABLE)` with layer, operation and remedy."""
    try:
        return _convert(model)
    except Exception as error:
        operations = _operations(str(error))
        culprit = _culprit(model)
        where = f"The layer {culprit.name} ({type(culprit).__name__})" if culprit else "The model"
        what = f"needs {', '.join(operations)}" if operations else f"does not convert: {_first_line(error)}"
        raise LocalError(
            Code.MODEL_NOT_PORTABLE,
            f"{where} {what}.",
            fix="; ".join(_INSTEAD[name] for name in operations if name in _INSTEAD)
            or "Build it from the layers of fedless.authoring.layers.",
        ) from error


def _convert(model: Model) -> bytes:
    module = tf.Module()
    module.grad = _signature(model.grad, model.specs(labels=True, masks=True))
    module.evaluate = _signature(model.evaluate, model.specs(labels=True, masks=False))
    module.infer = _signature(model.infer, model.specs(labels=False, masks=False))
    with tempfile.TemporaryDirectory(prefix="fedless-convert-") as directory, _quiet():
        # from_concrete_functions would lose the signatures' names. Exported custom gradients are of no use to
        # the converter and take minutes for unrolled recurrences.
        tf.saved_model.save(
            module,
            directory,
            signatures={name: getattr(module, name) for name in SIGNATURES},
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(directory, signature_keys=list(SIGNATURES))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converted: bytes = converter.convert()
    return converted


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorFlow's warnings that custom gradients are not exported: that is what we want."""

    def other(record: logging.LogRecord) -> bool:
        return "custom gradients" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _signature(function: Callable[[Mapping[str, Any]], dict[str, Any]], specs: Mapping[str, Any]) -> Any:  # noqa: ANN401
    names = list(specs)

    def call(*tensors: Any) -> dict[str, Any]:  # noqa: ANN401  (tensors)
        return function(dict(zip(names, tensors, strict=True)))

    return tf.function(call, input_signature=list(specs.values()))


def _culprit(model: Model) -> Layer | None:
    """The first layer that does not convert on its own (with a loss behind it)."""
    shape = model.input.shape
    for layer in model.layers:
        dtype = model.input.dtype if layer is model.layers[0] else "float32"
        if layer.weights(shape) and not _converts(layer, Input(model.input.name, shape, dtype)):
            return layer
        shape = layer.output_shape(shape)
    return None


def _converts(layer: Layer, item: Input) -> bool:
    name = layer.name
    try:
        _convert(Model([layer, Flatten()], input=item, loss=MSE, batch=2))
    except Exception:  # noqa: BLE001  (see convert)
        return False
    finally:
        layer.name = name
    return True


def _operations(text: str) -> list[str]:
    found = {name for match in _OPERATION.finditer(text) for name in match.groups() if name}
    known = [name for name in _INSTEAD if name in found or name in text]
    return known or sorted(name for name in found if name[:1].isupper())[:5]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :300
    ]
