"""Every layer against Keras: the same weights, the same numbers, forward and backward, in TensorFlow and in TFLite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

Keras = Any
BATCH = 4
TOLERANCE = 1e-6


def conv(keras: Keras) -> list[Any]:
    layers = keras.layers
    return [
        keras.Input((12, 12, 2)),
        layers.Conv2D(6, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(5, (3, 2), padding="same", activation="tanh"),
        layers.MaxPooling2D(3),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ]


def pooled(keras: Keras) -> list[Any]:
    layers = keras.layers
    return [
        keras.Input((7, 9, 3)),
        layers.Conv2D(8, 3, padding="same"),
        layers.GroupNormalization(4),
        layers.ReLU(),
        layers.AveragePooling2D(2),
        layers.Conv2D(4, 2, activation="sigmoid"),
        layers.GlobalAveragePooling2D(),
        layers.LayerNormalization(),
        layers.Dense(5, activation="softplus"),
        layers.Dense(3),
        layers.Softmax(),
    ]


def recurrent(keras: Keras) -> list[Any]:
    layers = keras.layers
    return [
        keras.Input((6,), dtype="int32"),
        layers.Embedding(11, 5),
        layers.LSTM(7, return_sequences=True),
        layers.GRU(6, return_sequences=True),
        layers.Dense(4, activation="relu"),
        layers.LSTM(5),
        layers.Dense(3),
    ]


def gated(keras: Keras) -> list[Any]:
    layers = keras.layers
    return [keras.Input((5, 3)), layers.GRU(6), layers.Activation("tanh"), layers.Dense(3)]


def mlp(keras: Keras) -> list[Any]:
    layers = keras.layers
    return [
        keras.Input((8, 2)),
        layers.Dense(6, activation="relu"),
        layers.Flatten(),
        layers.Dense(5, activation="relu"),
        layers.Dense(3),
    ]


ALL = [mlp, conv, pooled, recurrent, gated]


def make(build: Callable[[Keras], list[Any]]) -> tuple[Any, Any]:
    import keras

    from fedless.authoring.translate import translate

    keras.utils.set_random_seed(3)
    reference = keras.Sequential(build(keras))
    for weight in reference.weights:  # biases and betas of zero would hide a mistake
        weight.assign_add(0.1 * np.random.default_rng(len(weight.path)).standard_normal(weight.shape))
    return reference, translate(reference, batch=BATCH)


def batch(model: Any) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    shape = (BATCH, *model.input.shape)
    integers = model.input.dtype == "int32"
    return {
        "params": model.initial,
        "x": random.integers(0, 11, shape).astype(np.int32)
        if integers
        else random.standard_normal(shape).astype(np.float32),
        "y": np.array([0, 2, 1, 0], np.int32),
        "weight": np.array([1, 1, 1, 0], np.float32),
    }


def keras_gradient(reference: Any, values: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], float]:
    """TensorFlow's own gradient, by its own convolutions, pools and loops, of the three weighted examples."""
    import keras
    import tensorflow as tf

    last = reference.layers[-1]
    softmax = isinstance(last, keras.layers.Softmax) or last.activation is keras.activations.softmax
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    with tf.GradientTape() as tape:
        loss = loss_of(values["y"][:3], reference(values["x"][:3], training=True))
    gradients = tape.gradient(loss, reference.trainable_variables)
    flat = [tf.convert_to_tensor(gradient).numpy().reshape(-1) for gradient in gradients]
    return np.concatenate(flat), float(loss)


@pytest.mark.parametrize("build", ALL)
def test_one_step_is_that_of_keras_in_tensorflow_and_in_tflite(
    build: Callable[[Keras], list[Any]], tmp_path: Path
) -> None:
    import tensorflow as tf

    from edge_runtime.trainer import Graph
    from fedless.authoring.check import inspect_graph
    from fedless.authoring.convert import convert

    reference, model = make(build)
    values = batch(model)
    expected, expected_loss = keras_gradient(reference, values)
    ours = model.grad({name: tf.constant(value) for name, value in values.items()})
    graph = convert(model)
    inspect_graph(graph)
    (tmp_path / "model.tflite").write_bytes(graph)
    lite = Graph(tmp_path / "model.tflite", "grad", 1)(**values)
    for found in (ours["grad"].numpy(), lite["grad"]):
        assert np.abs(found - expected).max() < TOLERANCE
    for loss in (ours["loss"].numpy(), lite["loss"]):
        assert loss[0] == pytest.approx(expected_loss, abs=TOLERANCE)


@pytest.mark.parametrize("build", ALL)
def test_infer_is_what_keras_predicts(build: Callable[[Keras], list[Any]]) -> None:
    import tensorflow as tf

    reference, model = make(build)
    values = batch(model)
    outputs = model.infer({"params": tf.constant(values["params"]), "x": tf.constant(values["x"])})["outputs"]
    predicted = np.asarray(reference(values["x"], training=False))
    if not np.allclose(predicted.sum(1), 1.0, atol=1e-3):  # logits
        predicted = np.asarray(tf.nn.softmax(predicted))
    np.testing.assert_allclose(outputs.numpy(), predicted, atol=1e-6)


def test_equal_taps_give_the_gradient_to_the_first_as_tensorflow_does() -> None:
    """Black corners of images are areas of equal values: four taps, one gradient."""
    import tensorflow as tf

    from fedless.authoring import ops

    x = tf.constant(np.repeat(np.arange(8, dtype=np.float32), 8).reshape(1, 8, 8, 1) // 4)
    gradients = []
    pools: list[Callable[[Any], Any]] = [
        lambda value: ops.max_pool(value, 2),
        lambda value: tf.nn.max_pool2d(value, 2, 2, "VALID"),
    ]
    for pool in pools:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x)
        gradients.append(tape.gradient(y, x, output_gradients=tf.ones_like(y)).numpy())
    np.testing.assert_array_equal(*gradients)


def test_bias_and_relu_after_the_pool_change_nothing() -> None:
    """The pool is moved before bias and ReLU; apart from that the layers apply themselves one by one."""
    import tensorflow as tf

    _, model = make(conv)
    values = {name: tf.constant(value) for name, value in batch(model).items()}
    found = model._forward(values["params"], values, training=False)
    x, offset = values["x"], 0
    for layer, shapes in zip(model.layers, model._shapes, strict=True):
        weights = []
        for shape in shapes:
            size = math.prod(shape)
            weights.append(tf.reshape(values["params"][offset : offset + size], shape))
            offset += size
        x = layer.apply(weights, x)
    np.testing.assert_array_equal(found.numpy(), x.numpy())


def test_dropout_uses_the_clients_mask_in_training_only() -> None:
    import tensorflow as tf

    from fedless.authoring.layers import Dense, Dropout
    from fedless.authoring.model import Model
    from fedless.protocol.manifest import Input

    model = Model([Dropout(0.25), Dense(2)], input=Input("x", (3,)), batch=2)
    assert [(item.name, item.shape, item.keep) for item in model.randomness] == [("dropout_mask", (3,), 0.75)]
    values = {
        "params": tf.ones([8]),
        "x": tf.constant([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]),
        "y": tf.constant([0, 1]),
        "weight": tf.ones([2]),
    }
    kept = model.grad(values | {"dropout_mask": tf.ones([2, 3])})["grad"].numpy()
    dropped = model.grad(values | {"dropout_mask": tf.constant([[0.0, 0, 0], [1, 1, 1]])})["grad"].numpy()
    np.testing.assert_allclose(kept[:6], [1.75, -1.75, 3.5, -3.5, 7, -7])
    np.testing.assert_allclose(dropped[:6], [2, -2, 4, -4, 8, -8])
    assert "dropout_mask" not in model.specs(labels=True, masks=False)


def test_mse_is_keras_mean_squared_error() -> None:
    import keras
    import tensorflow as tf

    from fedless.authoring.layers import Dense
    from fedless.authoring.model import MSE, Model
    from fedless.protocol.manifest import Input

    model = Model([Dense(2)], input=Input("x", (3,)), loss=MSE, batch=4)
    random = np.random.default_rng(0)
    x, y = random.random((4, 3), np.float32), random.random((4, 2), np.float32)
    values = {"params": model.initial, "x": x, "y": y, "weight": np.ones(4, np.float32)}
    tensors = {name: tf.constant(value) for name, value in values.items()}
    predicted = model.infer(tensors)["outputs"].numpy()
    sums = model.evaluate(tensors)
    expected = keras.losses.MeanSquaredError()(y, predicted)
    assert float(sums["loss_sum"][0]) / 4 == pytest.approx(float(expected), rel=1e-6)
    assert float(sums["absolute_error"][0]) / 4 == pytest.approx(
        float(np.abs(predicted - y).mean()), rel=1e-6
    )


def test_names_follow_keras_and_the_same_seed_gives_the_same_weights() -> None:
    from fedless.authoring.layers import Dense
    from fedless.authoring.model import Model
    from fedless.protocol.manifest import Input

    models = [
        Model([Dense(4), Dense(2), Dense(2, name="out")], input=Input("x", (3,)), seed=7) for _ in range(2)
    ]
    assert [tensor.name for tensor in models[0].tensors][::2] == [
        "dense/kernel",
        "dense_1/kernel",
        "out/kernel",
    ]
    np.testing.assert_array_equal(models[0].initial, models[1].initial)
    assert models[0].initial[:12].std() > 0.1
    assert not models[0].initial[12:16].any()


def test_orthogonal_weights_are_orthogonal() -> None:
    from fedless.authoring.initial import draw

    drawn = draw("orthogonal", np.random.default_rng(0), (4, 12))
    np.testing.assert_allclose(drawn @ drawn.T, np.eye(4), atol=1e-6)


def build_of(*layers: Any, shape: tuple[int, ...] = (8, 8, 3), **options: Any) -> Any:
    from fedless.authoring.model import Model
    from fedless.protocol.manifest import Input

    return Model(list(layers), input=Input("x", shape), **options)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: build_of(m.Dense(2, "gelu"), shape=(3,)), "gelu"),
        (lambda m: build_of(m.Conv2D(2, 9), m.Flatten(), m.Dense(2)), "larger than"),
        (lambda m: build_of(m.Conv2D(2, 3), shape=(5,)), "does not fit"),
        (lambda m: build_of(m.MaxPool2D(9), m.Flatten(), m.Dense(2)), "window of 9"),
        (lambda m: build_of(m.GroupNorm(2), m.Flatten(), m.Dense(2)), "do not divide"),
        (lambda m: build_of(m.Dropout(1.0)), "rate"),
        (lambda m: build_of(m.Dense(4)), "needs logits"),
        (lambda m: build_of(m.Flatten()), "no weights"),
        (lambda m: build_of(m.Dense(4), loss="hinge", shape=(3,)), "hinge"),
    ],
)
def test_layers_that_do_not_fit_are_refused_in_the_authors_words(
    spoil: Callable[[Any], Any], says: str
) -> None:
    from fedless.authoring import layers
    from fedless.protocol.errors import Code, LocalError

    with pytest.raises(LocalError) as caught:
        spoil(layers)
    assert caught.value.code is Code.MODEL_NOT_PORTABLE
    assert says in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("batch", "Use GroupNormalization"),
        ("strides", "strides"),
        ("overlap", "overlap"),
        ("gelu", "gelu"),
        ("bidirectional", "LSTM"),
        ("branches", "merges"),
    ],
)
def test_keras_layers_without_a_counterpart_are_refused(name: str, says: str) -> None:
    import keras

    from fedless.authoring.translate import translate
    from fedless.protocol.errors import Code, LocalError

    layers = keras.layers
    image, sequence = keras.Input((8, 8, 3)), keras.Input((5, 3))
    outputs = {
        "batch": lambda: (image, layers.BatchNormalization()(image)),
        "strides": lambda: (image, layers.Conv2D(2, 3, strides=2)(image)),
        "overlap": lambda: (image, layers.MaxPooling2D(3, strides=2)(image)),
        "gelu": lambda: (image, layers.Dense(2, activation="gelu")(image)),
        "bidirectional": lambda: (sequence, layers.Bidirectional(layers.LSTM(2))(sequence)),
        "branches": lambda: (image, layers.Dense(3)(layers.Flatten()(image + layers.Dense(3)(image)))),
    }
    inputs, output = outputs[name]()
    with pytest.raises(LocalError) as caught:
        translate(keras.Model(inputs, output))
    assert caught.value.code is Code.MODEL_NOT_PORTABLE
    assert says in str(caught.value)
