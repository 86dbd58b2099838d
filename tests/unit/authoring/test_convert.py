"""The converter's refusals in the author's words, and the gate that nothing unsafe passes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedless.protocol.errors import Code, LocalError

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]


def custom(function: Any) -> Any:
    """A layer of the author's own: `function(x, w)` with one weight [n, n]."""
    from fedless.authoring.layers import Layer, Weight

    class Own(Layer):
        def weights(self, shape: tuple[int, ...]) -> Sequence[Weight]:
            return (Weight("kernel", (shape[-1], shape[-1])),)

        def apply(self, weights: Sequence[Any], x: Any) -> Any:
            return function(x, weights[0])

    return Own()


def model_of(*layers: Any, shape: tuple[int, ...] = (6,), batch: int = 4) -> Any:
    from fedless.authoring.model import MSE, Model
    from fedless.protocol.manifest import Input

    return Model(list(layers), input=Input("x", shape), loss=MSE, batch=batch)


def test_an_own_layer_of_builtin_operations_converts() -> None:
    import tensorflow as tf

    from fedless.authoring.check import compare, inspect_graph
    from fedless.authoring.convert import convert

    model = model_of(custom(lambda x, w: tf.tanh(x @ w)))
    graph = convert(model)
    inspect_graph(graph)
    agreement = compare(model, graph)
    assert agreement.gradient_error < 1e-6
    assert agreement.runtime
    assert agreement.peak_memory_mb > 10


@pytest.mark.parametrize(
    ("operation", "instead"), [("relu", "tf.maximum(x, 0.0)"), ("gelu", "relu, tanh or softplus")]
)
def test_an_unsupported_operation_names_the_layer_and_what_to_use(operation: str, instead: str) -> None:
    import tensorflow as tf

    from fedless.authoring.convert import convert
    from fedless.authoring.layers import Dense

    functions = {"relu": lambda x, w: tf.nn.relu(x @ w), "gelu": lambda x, w: tf.nn.gelu(x @ w)}
    with pytest.raises(LocalError) as caught:
        convert(model_of(Dense(6), custom(functions[operation]), Dense(2)))
    assert caught.value.code is Code.MODEL_NOT_PORTABLE
    assert "own (Own)" in str(caught.value)
    assert instead in str(caught.value)


def converted(function: Any, *specs: Any) -> bytes:
    import tensorflow as tf

    concrete = tf.function(function).get_concrete_function(*specs)
    data: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    return data


def inspection(function: Any, *shapes: list[int | None]) -> str:
    import tensorflow as tf

    from fedless.authoring.check import inspect_graph

    graph = converted(function, *(tf.TensorSpec(shape, tf.float32) for shape in shapes))
    with pytest.raises(LocalError) as caught:
        inspect_graph(graph)
    assert caught.value.code is Code.MODEL_NOT_PORTABLE
    return str(caught.value)


def test_rank_0_input_is_refused() -> None:
    assert "rank 0" in inspection(lambda x, y: x * y, [4], [])


def test_five_dimensions_are_refused() -> None:
    assert "5 dimensions" in inspection(lambda x: x * 2.0, [1, 2, 3, 4, 5])


def test_dynamic_batch_is_refused() -> None:
    assert "dynamic" in inspection(lambda x: x * 2.0, [None, 3])


def test_large_embedded_constant_is_refused() -> None:
    constant = np.random.default_rng(0).random(100_000).astype(np.float32)
    assert "constants take 400" in inspection(lambda x: x * constant, [100_000])


def test_a_graph_that_computes_something_else_is_refused() -> None:
    from fedless.authoring.check import compare
    from fedless.authoring.convert import convert
    from fedless.authoring.layers import Dense

    model = model_of(Dense(3, "tanh"))
    other = convert(model_of(Dense(3, "sigmoid")))
    with pytest.raises(LocalError) as caught:
        compare(model, other)
    assert "differs from TensorFlow" in str(caught.value)


def test_a_graph_that_the_runtime_dies_of_is_refused() -> None:
    from fedless.authoring.check import compare
    from fedless.authoring.layers import Dense

    with pytest.raises(LocalError) as caught:
        compare(model_of(Dense(3)), b"no model" * 100, sys.executable)
    assert caught.value.code is Code.MODEL_NOT_PORTABLE
    assert "died" in str(caught.value)


def test_a_directory_with_something_else_is_not_overwritten(tmp_path: Path) -> None:
    from fedless.authoring.build import build_function
    from fedless.authoring.layers import Dense

    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(LocalError) as caught:
        build_function(model_of(Dense(3)), tmp_path, name="tiny")
    assert caught.value.code is Code.STATE_EXISTS
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
