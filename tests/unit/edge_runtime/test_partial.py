"""Training with a part of one's own: what is reported has no place for it; alternating holds the other part still."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_runtime import loops, partial
from edge_runtime.data import Dataset
from edge_runtime.optimizers import LocalOptimizer, Vector
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.layout import Layout
from fedless.protocol.manifest import Input, Label, Model
from fedless.protocol.messages import ClientRule, Optimizer

SIZE, COUNT, BATCH = 6, 8, 4
LAYOUT = Layout(SIZE, ((1, 2), (5, 1)))
OWN, SHARED = [1, 2, 5], [0, 3, 4]
MODEL = Model(SIZE, BATCH, "mse", "", (), (Input("x", (1,)),), (Label("y", (), "float32"),))


def graph(**inputs: Any) -> dict[str, Any]:
    """The gradient is the weights less 1, whatever the data."""
    weights = inputs["params"]
    return {"grad": (weights - 1.0).astype(np.float32), "loss": np.array([0.5])}


def train(rule: ClientRule, start: Vector, layout: Layout | None = LAYOUT) -> loops.Result:
    data = Dataset({"x": np.zeros((COUNT, 1), np.float32), "y": np.zeros(COUNT, np.float32)}, MODEL)
    feed = loops.Feed(MODEL, data, labels=True)
    work = loops.Work(MODEL, graph, feed, np.arange(COUNT), start, layout=layout)
    return loops.train(work, rule, lambda _event: None)


def halves(result: loops.Result) -> tuple[Vector, Vector]:
    numbers = np.frombuffer(result.payload, "<f4")
    return numbers[: LAYOUT.common], numbers[LAYOUT.common :]


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_the_update_has_the_shared_part_and_the_head_comes_behind_it(optimizer: Optimizer) -> None:
    start = np.arange(SIZE, dtype=np.float32)
    rule = ClientRule(optimizer, 0.1, local_epochs=2)
    whole = np.frombuffer(train(rule, start, None).payload, "<f4")
    update, head = halves(train(rule, start))
    np.testing.assert_array_equal(update, whole[SHARED])
    np.testing.assert_allclose(head, (start + whole)[OWN], rtol=1e-6)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_alternating_is_two_trainings_one_after_the_other(optimizer: Optimizer) -> None:
    """Each of them is the plain optimiser's on its own elements, weight decay and moments included."""
    start = np.linspace(2.0, 4.0, SIZE, dtype=np.float32)
    rule = ClientRule(optimizer, 0.1, local_epochs=1, personal_epochs=3, weight_decay=0.5)
    result = train(rule, start)
    update, head = halves(result)
    assert result.steps == 8
    expected = start.copy()
    for elements, steps in ((OWN, 6), (SHARED, 2)):
        alone = LocalOptimizer(rule, expected[elements])
        part = expected[elements]
        for _ in range(steps):
            alone.step(part, (part - 1.0).astype(np.float32))
        expected[elements] = part
    np.testing.assert_allclose(head, expected[OWN], rtol=1e-6)
    np.testing.assert_allclose(update, (expected - start)[SHARED], rtol=1e-5)


def test_fednovas_number_counts_the_shared_parts_steps_only() -> None:
    rule = ClientRule(Optimizer.SGD, 0.1, local_epochs=2, personal_epochs=3, normalized=True)
    assert train(rule, np.zeros(SIZE, np.float32)).sums["normalizer"] == COUNT * 4


def test_a_head_goes_into_its_places_and_comes_back_as_it_was() -> None:
    head = np.array([7.0, 8.0, 9.0], np.float32)
    whole = partial.with_head(np.zeros(SIZE, np.float32), LAYOUT, head)
    assert whole.tolist() == [0.0, 7.0, 8.0, 0.0, 0.0, 9.0]
    data = partial.to_bytes("ab", LAYOUT, partial.taken(whole, LAYOUT.personal))
    bundle, layout, found = partial.from_bytes(data)
    assert (bundle, layout, found.tolist()) == ("ab", LAYOUT, head.tolist())


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\2{}", b"\0\0\0\x09", partial.to_bytes("a", LAYOUT, np.zeros(2, "f4"))]
)
def test_damaged_bytes_are_told(data: bytes) -> None:
    with pytest.raises(LocalError) as caught:
        partial.from_bytes(data)
    assert caught.value.code is Code.STATE_CORRUPT
