"""The schema check: each way in which data does not fit has its code and says what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.data import Dataset
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input, Label, Model, Tensor


def model(*inputs: Input, label: Label | None = None) -> Model:
    return Model(
        parameters=1,
        batch=4,
        loss="mse",
        initial_sha256="00" * 32,
        tensors=(Tensor("w", (1,), 0),),
        inputs=inputs or (Input("x", (2, 2, 1), "float32", 0.0, 1.0),),
        labels=(label or Label("y", (), "int32", 3),),
    )


def arrays(**changes: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
    return {"x": np.zeros((5, 2, 2, 1), np.float32), "y": np.array([0, 1, 2, 1, 0]), **changes}


def refusal(fields: Mapping[str, NDArray[Any]], described: Model | None = None) -> LocalError:
    with pytest.raises(LocalError) as caught:
        Dataset(fields, described or model())
    return caught.value


def batch(dataset: Dataset, described: Model, indices: list[int]) -> dict[str, NDArray[Any]]:
    specs: list[Input | Label] = [*described.inputs, *described.labels]
    into = {spec.name: np.full((described.batch, *spec.shape), 9, spec.dtype) for spec in specs}
    dataset.fill(np.array(indices), into)
    return into


def test_data_that_fits_is_batched_and_padded() -> None:
    x = np.arange(20, dtype=np.float32).reshape(5, 2, 2, 1) / 20
    filled = batch(Dataset(arrays(x=x), model()), model(), [4, 0])
    np.testing.assert_array_equal(filled["x"][:2], x[[4, 0]])
    assert not filled["x"][2:].any()
    np.testing.assert_array_equal(filled["y"], [0, 0, 0, 0])


def test_uint8_images_are_mapped_onto_the_range() -> None:
    described = model(Input("x", (2, 2, 1), "float32", -1.0, 1.0))
    x = np.array([0, 51, 204, 255], np.uint8).reshape(1, 2, 2)
    filled = batch(Dataset({"x": x, "y": np.array([0])}, described), described, [0])
    np.testing.assert_allclose(filled["x"][0].ravel(), [-1.0, -0.6, 0.6, 1.0], atol=1e-6)


def test_dimensions_of_size_one_may_be_left_out() -> None:
    assert Dataset(arrays(x=np.zeros((5, 2, 2), np.uint8)), model()).count == 5


def test_float_labels_that_are_whole_numbers_are_labels() -> None:
    filled = batch(Dataset(arrays(y=np.array([0.0, 1.0, 2.0, 1.0, 0.0])), model()), model(), [2])
    assert filled["y"][0] == 2


def test_wrong_shape_is_refused() -> None:
    error = refusal(arrays(x=np.zeros((5, 3, 2, 1), np.float32)))
    assert error.code is Code.DATA_SHAPE
    assert "(2, 2, 1)" in str(error)
    assert "(3, 2, 1)" in str(error)


def test_different_numbers_of_examples_are_refused() -> None:
    error = refusal(arrays(y=np.array([0, 1])))
    assert error.code is Code.DATA_SHAPE
    assert "x has 5, y has 2" in str(error)


@pytest.mark.parametrize(
    "x",
    [np.full((5, 2, 2, 1), "a"), np.zeros((5, 2, 2, 1), bool), np.zeros((5, 2, 2, 1), complex)],
    ids=["text", "bool", "complex"],
)
def test_wrong_dtype_is_refused(x: NDArray[Any]) -> None:
    assert refusal(arrays(x=x)).code is Code.DATA_DTYPE


def test_labels_with_fractions_are_refused() -> None:
    assert refusal(arrays(y=np.array([0, 0.5, 1, 2, 0]))).code is Code.DATA_DTYPE


@pytest.mark.parametrize("x", [np.zeros((0, 2, 2, 1), np.float32), np.float32(1.0)])
def test_empty_data_is_refused(x: NDArray[Any]) -> None:
    assert refusal(arrays(x=x)).code is Code.DATA_EMPTY


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_numbers_are_refused(bad: float) -> None:
    x = np.zeros((5, 2, 2, 1), np.float32)
    x[3, 1, 0, 0] = bad
    assert refusal(arrays(x=x)).code is Code.DATA_NOT_FINITE


def test_nan_in_a_float_label_is_refused() -> None:
    described = model(label=Label("y", (), "float32"))
    y = np.array([0.0, 1.0, np.nan, 1.0, 0.0])
    assert refusal(arrays(y=y), described).code is Code.DATA_NOT_FINITE


@pytest.mark.parametrize("bad", [-1, 3])
def test_label_outside_the_classes_is_refused(bad: int) -> None:
    error = refusal(arrays(y=np.array([0, 1, bad, 1, 0])))
    assert error.code is Code.DATA_RANGE
    assert "0..2" in str(error)


def test_value_outside_the_range_is_refused() -> None:
    assert refusal(arrays(x=np.full((5, 2, 2, 1), 1.5, np.float32))).code is Code.DATA_RANGE


def test_token_that_does_not_fit_int32_is_refused() -> None:
    described = model(Input("x", (2,), "int32"))
    assert refusal({"x": np.full((1, 2), 2**31), "y": np.array([0])}, described).code is Code.DATA_RANGE


def test_missing_label_is_refused_and_named() -> None:
    error = refusal({"x": np.zeros((5, 2, 2, 1))})
    assert error.code is Code.DATA_MISSING
    assert "needs y" in str(error)


def test_labels_are_not_needed_to_infer() -> None:
    assert Dataset({"x": np.zeros((5, 2, 2, 1))}, model(), labels=False).count == 5


# -- the held-out part


def test_the_parts_are_disjoint_whole_and_the_same_every_time() -> None:
    dataset = Dataset({"x": np.zeros((100, 2, 2, 1)), "y": np.zeros(100, int)}, model())
    training, held_out = (dataset.part(0.25, held_out=flag) for flag in (False, True))
    assert (training.size, held_out.size) == (75, 25)
    assert sorted([*training, *held_out]) == list(range(100))
    np.testing.assert_array_equal(held_out, dataset.part(0.25, held_out=True))


def test_one_example_always_stays_for_training() -> None:
    assert Dataset(arrays(), model()).part(1.0, held_out=False).size == 1


def test_evaluating_on_nothing_is_refused() -> None:
    with pytest.raises(LocalError) as caught:
        Dataset(arrays(), model()).part(0.1, held_out=True)
    assert caught.value.code is Code.DATA_EMPTY
