"""Exported files give what the function's own graph gives with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedless.authoring import export
from fedless.authoring.sign import read_manifest
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Model

pytestmark = pytest.mark.tensorflow
EXAMPLE = Path(__file__).parents[3] / "examples" / "mnist"


@pytest.fixture(params=["function-mlp", "function"])
def function(request: pytest.FixtureRequest) -> tuple[Model, bytes, np.ndarray]:
    folder = EXAMPLE / request.param
    model = read_manifest(folder).model
    assert model is not None
    weights = np.random.default_rng(3).normal(0, 0.1, model.parameters).astype("<f4")
    return model, (folder / "model.tflite").read_bytes(), weights


def test_tflite_infers_as_the_function_does(
    function: tuple[Model, bytes, np.ndarray], tmp_path: Path
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, graph, weights = function
    data = export.tflite(graph, weights)
    x = np.random.default_rng(4).random((model.batch, *model.inputs[0].shape), np.float32)
    alone = Interpreter(model_content=data)
    assert list(alone.get_signature_list()) == ["infer"]
    assert alone.get_signature_list()["infer"]["inputs"] == ["x"]
    found = alone.get_signature_runner("infer")(x=x)["outputs"]
    whole = Interpreter(model_content=graph)
    expected = whole.get_signature_runner("infer")(params=weights, x=x)["outputs"]
    np.testing.assert_array_equal(found, expected)
    alone.allocate_tensors()  # and without signatures, as most programs do
    alone.set_tensor(alone.get_input_details()[0]["index"], x)
    alone.invoke()
    np.testing.assert_array_equal(alone.get_tensor(alone.get_output_details()[0]["index"]), expected)
    assert len(data) < len(graph) + 4 * model.parameters + 4096


def test_npz_has_each_tensor_by_name(function: tuple[Model, bytes, np.ndarray], tmp_path: Path) -> None:
    model, _, weights = function
    export.npz(model, weights, tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as file:
        assert list(file) == [tensor.name for tensor in model.tensors]
        assert [file[tensor.name].shape for tensor in model.tensors] == [
            tensor.shape for tensor in model.tensors
        ]
        np.testing.assert_array_equal(np.concatenate([file[name].reshape(-1) for name in file]), weights)


def test_keras_model_takes_the_weights(tmp_path: Path) -> None:
    import keras

    from fedless.authoring.convert import convert
    from fedless.authoring.translate import translate

    original = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    original.save(tmp_path / "original.keras")
    translated = translate(original, batch=4)
    described = Model(
        translated.parameters,
        4,
        translated.loss,
        "0" * 64,
        translated.tensors,
        (translated.input,),
        (translated.label,),
    )
    weights = np.random.default_rng(5).normal(size=translated.parameters).astype("<f4")
    export.keras(tmp_path / "original.keras", described, weights, tmp_path / "trained.keras")
    x = np.random.default_rng(6).random((4, 6), np.float32)
    found = keras.models.load_model(tmp_path / "trained.keras").predict(x, verbose=0)
    from ai_edge_litert.interpreter import Interpreter

    alone = Interpreter(model_content=export.tflite(convert(translated), weights))
    np.testing.assert_allclose(found, alone.get_signature_runner("infer")(x=x)["outputs"], atol=1e-6)
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    other.save(tmp_path / "other.keras")
    with pytest.raises(LocalError) as refusal:
        export.keras(tmp_path / "other.keras", described, weights, tmp_path / "no.keras")
    assert refusal.value.code is Code.MODEL_NOT_PORTABLE
    assert not (tmp_path / "no.keras").exists()


def test_weights_of_another_model_are_refused(
    function: tuple[Model, bytes, np.ndarray], tmp_path: Path
) -> None:
    model, _, weights = function
    with pytest.raises(LocalError) as refusal:
        export.npz(model, weights[:-1], tmp_path / "m.npz")
    assert refusal.value.code is Code.OUT_OF_RANGE
