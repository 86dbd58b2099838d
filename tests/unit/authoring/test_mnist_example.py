"""The example's functions are what its model file builds, and they learn as TensorFlow does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.data.idx import read_idx
from edge_runtime.optimizers import LocalOptimizer
from fedless.authoring.sign import read_manifest
from fedless.protocol.messages import ClientRule, Optimizer

EXAMPLE = Path("examples/mnist").resolve()
BUILT = {"model": EXAMPLE / "function", "mlp": EXAMPLE / "function-mlp"}
FEDLESS_2021 = Path("examples/fedless2021").resolve()
"""The same CNN in batches of 10."""


def example_model(attribute: str) -> Any:
    from fedless.console.function import load_model

    return load_model(EXAMPLE / "model.py", attribute)


def images() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    x = read_idx(EXAMPLE / "data" / "train-images-idx3-ubyte")[..., None] / np.float32(255)
    return x.astype(np.float32), read_idx(EXAMPLE / "data" / "train-labels-idx1-ubyte").astype(np.int32)


@pytest.mark.parametrize(("folder", "batch"), [(EXAMPLE, 32), (FEDLESS_2021, 10)])
def test_the_cnn_has_the_parameters_of_fedless(folder: Path, batch: int) -> None:
    model = read_manifest(folder / "function").model
    assert model is not None
    assert (model.parameters, model.batch) == (582_026, batch)
    assert (folder / "function" / "initial.f32").stat().st_size == 4 * 582_026


def test_the_subset_is_balanced_and_as_large_as_the_readme_says() -> None:
    for part, each in {"train": 500, "t10k": 200}.items():
        labels = read_idx(EXAMPLE / "data" / f"{part}-labels-idx1-ubyte")
        assert np.bincount(labels).tolist() == [each] * 10
        assert read_idx(EXAMPLE / "data" / f"{part}-images-idx3-ubyte").shape == (10 * each, 28, 28)


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("attribute", BUILT)
def test_building_again_gives_the_committed_function(attribute: str, tmp_path: Path) -> None:
    import tensorflow as tf

    from fedless.authoring.build import build_function

    committed = read_manifest(BUILT[attribute])
    built = build_function(
        example_model(attribute),
        tmp_path,
        name=committed.name,
        licence=committed.licence,
        memory_mb=committed.memory_mb,
    )
    assert dataclasses.replace(built, check=None) == dataclasses.replace(committed, check=None)
    assert (tmp_path / "initial.f32").read_bytes() == (BUILT[attribute] / "initial.f32").read_bytes()
    if committed.check is not None and committed.check.tensorflow == tf.__version__:
        assert (tmp_path / "model.tflite").read_bytes() == (BUILT[attribute] / "model.tflite").read_bytes()


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("attribute", BUILT)
def test_the_committed_graph_computes_what_tensorflow_does(attribute: str) -> None:
    from fedless.authoring.check import compare

    graph = (BUILT[attribute] / "model.tflite").read_bytes()
    assert compare(example_model(attribute), graph).gradient_error < 1e-6


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
def test_the_graph_in_batches_of_ten_computes_what_tensorflow_does() -> None:
    from fedless.authoring.check import compare
    from fedless.console.function import load_model

    model = load_model(FEDLESS_2021 / "model.py", "model")
    graph = (FEDLESS_2021 / "function" / "model.tflite").read_bytes()
    assert compare(model, graph).gradient_error < 1e-6


def lite_training(attribute: str, rule: ClientRule, steps: int) -> tuple[NDArray[np.float32], list[float]]:
    """Weights and losses of `steps` batches of 32 on the runtime, with our optimiser."""
    from edge_runtime.trainer import Graph

    graph = Graph(BUILT[attribute] / "model.tflite", "grad", 1)
    weights = np.fromfile(BUILT[attribute] / "initial.f32", "<f4")
    optimizer = LocalOptimizer(rule, weights.copy())
    x, y = images()
    order = np.random.default_rng(0).permutation(len(y))
    losses = []
    for step in range(steps):
        chosen = order[32 * step : 32 * step + 32]
        outputs = graph(params=weights, x=x[chosen], y=y[chosen], weight=np.ones(32, np.float32))
        losses.append(float(outputs["loss"][0]))
        optimizer.step(weights, outputs["grad"])
    return weights, losses


def keras_training(attribute: str, optimizer: Any, steps: int) -> tuple[NDArray[np.float32], list[float]]:
    """The same in Keras: its own layers, gradients and optimiser."""
    import keras
    import tensorflow as tf

    layers = keras.layers
    cnn = [
        layers.Conv2D(32, 5, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 5, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(512, activation="relu"),
        layers.Dense(10),
    ]
    mlp = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *(cnn if attribute == "model" else mlp)])
    flat, offset = np.fromfile(BUILT[attribute] / "initial.f32", "<f4"), 0
    for weight in model.weights:
        size = int(np.prod(weight.shape))
        weight.assign(flat[offset : offset + size].reshape(weight.shape))
        offset += size
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function  # type: ignore[untyped-decorator]
    def step_on(images_: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images_))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.weights), model.weights, strict=True))
        return loss

    x, y = images()
    order = np.random.default_rng(0).permutation(len(y))
    batches = [order[32 * step : 32 * step + 32] for step in range(steps)]
    losses = [float(step_on(tf.constant(x[chosen]), tf.constant(y[chosen]))) for chosen in batches]
    return np.concatenate([np.asarray(weight).reshape(-1) for weight in model.weights]), losses


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_fifty_steps_of_the_mlp_are_those_of_keras(optimizer: str) -> None:
    import keras

    theirs = {
        "sgd": keras.optimizers.SGD(0.1),
        "momentum": keras.optimizers.SGD(0.05, momentum=0.9),
        "adam": keras.optimizers.Adam(1e-3),
    }
    rules = {
        "sgd": ClientRule(Optimizer.SGD, 0.1),
        "momentum": ClientRule(Optimizer.MOMENTUM, 0.05),
        "adam": ClientRule(Optimizer.ADAM, 1e-3),
    }
    found, _ = lite_training("mlp", rules[optimizer], 50)
    expected, _ = keras_training("mlp", theirs[optimizer], 50)
    # Adam divides by sqrt(v), so where a gradient is next to nothing its rounding shows.
    assert np.abs(found - expected).max() < (1e-3 if optimizer == "adam" else 2e-6)
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
def test_the_cnn_learns_along_keras_curve() -> None:
    """Weights drift apart (ReLU and max switch, training.md section 3); the losses do not."""
    import keras

    _, found = lite_training("model", ClientRule(Optimizer.ADAM, 1e-3), 100)
    _, expected = keras_training("model", keras.optimizers.Adam(1e-3), 100)
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    for low in range(0, 100, 20):
        ours, theirs = np.mean(found[low : low + 20]), np.mean(expected[low : low + 20])
        assert ours == pytest.approx(theirs, abs=0.02)
    assert np.mean(found[80:]) < 0.35
