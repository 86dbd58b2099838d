"""DP-SGD on the device: what one example can move a step by, the noise that hides it, and what is told beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.data import Dataset
from edge_runtime.dpsgd import PrivateGradients
from edge_runtime.loops import Feed, Work, train
from edge_runtime.optimizers import Vector
from fedless.protocol.manifest import Input, Label, Model
from fedless.protocol.messages import ClientRule

SEED = bytes(range(32))
CLIP, Z, BATCH = 0.5, 2.0, 4


def rule(multiplier: float = Z, clip: float = CLIP) -> ClientRule:
    return ClientRule(learning_rate=1.0, example_clip=clip, example_noise=multiplier)


def gradient(*values: float) -> Vector:
    return np.array(values, np.float32)


def test_long_gradients_are_clipped_and_short_ones_are_not() -> None:
    """(30, 40) counts as (0.3, 0.4), (0.1, 0) as itself; the sum is divided by the batch, however many there are."""
    private = PrivateGradients(rule(1e-6), 2, BATCH, SEED)
    mean = private.mean([gradient(30.0, 40.0), gradient(0.1, 0.0)])
    assert mean.tolist() == pytest.approx([0.4 / BATCH, 0.4 / BATCH], abs=1e-5)


def test_noise_is_the_multiplier_times_the_clip() -> None:
    private = PrivateGradients(rule(), 50_000, BATCH, SEED)
    mean = private.mean([np.zeros(50_000, np.float32)])
    assert float(mean.std()) * BATCH == pytest.approx(Z * CLIP, rel=0.03)
    again = private.mean([np.zeros(50_000, np.float32)])
    assert abs(float(np.corrcoef(mean, again)[0, 1])) < 0.03  # each step has noise of its own


def test_steps_of_the_noise_are_far_below_it_and_every_sum_is_exact() -> None:
    for clip, multiplier in ((1e-3, 0.1), (1.0, 1.0), (1e4, 100.0)):
        private = PrivateGradients(rule(multiplier, clip), 10, 128, SEED)
        assert private.sigma >= 2**30 or private.sigma >= multiplier * 2**40
        assert 128 * clip * private.steps <= 2**50


def test_gradient_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(Exception, match="not finite"):
        PrivateGradients(rule(), 2, BATCH, SEED).mean([gradient(float("nan"), 0.0)])


# -- in the loop


class Recorder:
    """A graph whose gradient is the mean of its examples, y unused; notes how many examples came at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, **inputs: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        weight = inputs["weight"]
        self.sizes.append(int((weight > 0).sum()))
        grad = (inputs["x"] * weight[:, None]).sum(0) / max(1.0, float(weight.sum()))
        return {"grad": grad.astype(np.float32), "loss": np.array([3.0], np.float32)}


def trained(
    private: PrivateGradients | None, example_noise: float
) -> tuple[Vector, dict[str, float], list[int]]:
    model = Model(2, BATCH, "none", "", (), (Input("x", (2,)),), (Label("y"),))
    rows = np.array([[8.0, 0.0], [0.0, 8.0], [0.1, 0.1], [0.2, 0.0], [0.0, 0.2]], np.float32)
    dataset = Dataset({"x": rows, "y": np.zeros(5, np.int32)}, model)
    graph = Recorder()
    work = Work(model, graph, Feed(model, dataset, labels=True), np.arange(5), np.zeros(2, np.float32))
    result = train(work, rule(example_noise), lambda _values: None, private=private)
    return np.frombuffer(result.payload, "<f4"), dict(result.sums), graph.sizes


def test_training_sees_one_example_at_a_time_and_tells_no_loss() -> None:
    delta, sums, sizes = trained(PrivateGradients(rule(1e-6), 2, BATCH, SEED), 1e-6)
    assert sizes == [1] * 5
    assert sums == {}
    expected = -(CLIP + 0.1 + 0.2) / BATCH
    assert delta.tolist() == pytest.approx([expected, expected], abs=1e-4)


def test_one_example_moves_the_update_by_no_more_than_its_clip() -> None:
    """The update less the one without the example: learning rate 1, so at most clip / batch."""
    delta, _, _ = trained(PrivateGradients(rule(1e-6), 2, BATCH, SEED), 1e-6)
    rest = -np.array([0.1 + 0.2, CLIP + 0.1 + 0.2]) / BATCH
    assert float(np.linalg.norm(delta - rest)) == pytest.approx(CLIP / BATCH, rel=1e-3)


def test_noise_of_a_local_training_adds_up_over_its_steps() -> None:
    """Two steps (five examples, batches of four): variance 2 (z C / B)^2 in each coordinate."""
    found = [trained(PrivateGradients(rule(), 2, BATCH, bytes([i]) * 32), Z)[0] for i in range(200)]
    assert float(np.std(found)) == pytest.approx(math.sqrt(2) * Z * CLIP / BATCH, rel=0.15)


def test_without_local_noise_nothing_changes() -> None:
    _, sums, sizes = trained(None, 0.0)
    assert sizes == [4, 1]
    assert sums == {"loss": 15.0}
