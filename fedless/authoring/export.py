"""A trained model as a file of its own: .tflite with the weights inside, .keras, .npz.

Called by `fedless model export`. `npz` needs numpy only; the others TensorFlow. The .tflite has one signature, `infer`,
with the inputs of the function's manifest and a static batch: what serves it needs neither fedless nor the flat vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedless.protocol import manifest
from fedless.protocol.errors import Code, LocalError

Floats = NDArray[np.float32]
INFER = b"infer"
PARAMS = b"params"
_CALLS_OTHERS = {"IfOptionsT", "WhileOptionsT", "CallOnceOptionsT", "CallOptionsT", "StablehloWhileOptionsT"}


def arrays(model: manifest.Model, weights: Floats) -> dict[str, Floats]:
    """The flat vector float32[P] as named tensors. Raises `LocalError(OUT_OF_RANGE)` for another P."""
    if len(weights) != model.parameters:
        detail = f"The function has {model.parameters} parameters, these are {len(weights)} weights."
        raise LocalError(Code.OUT_OF_RANGE, detail)
    return {
        tensor.name: weights[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
        for tensor in model.tensors
    }


def npz(model: manifest.Model, weights: Floats, out: Path) -> None:
    """Writes one array for each tensor of the manifest, by its name."""
    named: Mapping[str, Any] = arrays(model, weights)
    with out.open("wb") as file:
        np.savez(file, **named)


def tflite(graph: bytes, weights: Floats) -> bytes:
    """The graph of a function with `weights` as a constant and `infer` alone. Raises MODEL_NOT_PORTABLE."""
    from tensorflow.lite.python import schema_py_generated as schema  # noqa: PLC0415  (needs tensorflow)
    from tensorflow.lite.tools import flatbuffer_utils  # noqa: PLC0415

    model = schema.ModelT.InitFromPackedBuf(graph, 0)
    infer = next((each for each in model.signatureDefs or () if each.signatureKey == INFER), None)
    if infer is None:
        raise LocalError(Code.MODEL_NOT_PORTABLE, "The function's graph has no signature `infer`.")
    subgraph = model.subgraphs[infer.subgraphIndex]
    if any(type(operator.builtinOptions).__name__ in _CALLS_OTHERS for operator in subgraph.operators):
        raise LocalError(
            Code.MODEL_NOT_PORTABLE, "Its `infer` calls other subgraphs, and would lose them alone."
        )
    params = next(each for each in infer.inputs if each.name == PARAMS)
    constant = schema.BufferT()
    constant.data = np.frombuffer(weights.astype("<f4", copy=False).tobytes(), np.uint8)
    subgraph.tensors[params.tensorIndex].buffer = len(model.buffers)
    model.buffers.append(constant)
    subgraph.inputs = [index for index in subgraph.inputs if index != params.tensorIndex]
    infer.inputs = [each for each in infer.inputs if each is not params]
    infer.subgraphIndex = 0
    model.subgraphs, model.signatureDefs = [subgraph], [infer]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def keras(like: Path, model: manifest.Model, weights: Floats, out: Path) -> None:
    """The Keras model in `like` (.keras), which the function was translated from, with these weights instead.

    Raises `LocalError` MODEL_NOT_PORTABLE if it is not that model.
    """
    import keras as library  # noqa: PLC0415  (comes with tensorflow)

    original = library.models.load_model(like, compile=False)
    sizes = [value.size for layer in original.layers for value in layer.get_weights()]
    wanted = [tensor.size for tensor in model.tensors]
    if sizes != wanted:
        detail = f"The weights of {like} have sizes {sizes[:8]}, those of the function {wanted[:8]}."
        raise LocalError(
            Code.MODEL_NOT_PORTABLE, detail, fix="Name the model that the function was built of."
        )
    values = iter(arrays(model, weights).values())
    for layer in original.layers:
        own = layer.get_weights()
        layer.set_weights([next(values).reshape(old.shape) for old in own])
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:  # Keras insists on the suffix
        draft = Path(folder) / "model.keras"
        original.save(draft)
        draft.replace(out)
