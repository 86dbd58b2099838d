"""A training that is interrupted after any step, and gone on with, gives the same bytes as one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime import paused
from edge_runtime.data import Dataset
from edge_runtime.loops import Feed, Pauses, Result, Work, train
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input, Label, Model, Randomness
from fedless.protocol.messages import ClientRule, Optimizer

BATCH, P = 4, 6
RANDOM = np.random.default_rng(3)
ROWS = RANDOM.normal(size=(10, P)).astype(np.float32)
RULES = {
    "sgd": ClientRule(Optimizer.SGD, 0.1, local_epochs=3, seed=7, clip_norm=1.0),
    "momentum": ClientRule(Optimizer.MOMENTUM, 0.1, local_epochs=3, seed=7, proximal_mu=0.1),
    "adam": ClientRule(Optimizer.ADAM, 0.1, local_epochs=3, seed=7, weight_decay=0.01),
}


def graph(**inputs: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
    """Pulls the weights to the mean of the batch, through a dropout mask."""
    weight, mask = inputs["weight"], inputs["mask"]
    target = (inputs["x"] * mask * weight[:, None]).sum(0) / max(1.0, float(weight.sum()))
    apart = (inputs["params"] - target).astype(np.float32)
    return {"grad": apart.copy(), "loss": np.array([np.dot(apart, apart)], np.float32)}


def trained(rule: ClientRule, pauses: Pauses = Pauses()) -> Result:  # noqa: B008 - it is frozen
    noise = (Randomness("mask", (P,), 0.8),)
    model = Model(P, BATCH, "none", "", (), (Input("x", (P,)),), (Label("y"),), randomness=noise)
    dataset = Dataset({"x": ROWS, "y": np.zeros(len(ROWS), np.int32)}, model)
    start = np.zeros(P, np.float32)
    work = Work(model, graph, Feed(model, dataset, labels=True), np.arange(len(ROWS)), start, pauses)
    return train(work, rule, lambda _values: None)


@pytest.mark.parametrize("name", RULES)
def test_interrupted_after_every_step_it_gives_the_same_bytes(name: str) -> None:
    whole = trained(RULES[name])
    assert (whole.steps, whole.unfinished) == (9, False)
    state, steps = b"", []
    while True:
        result = trained(RULES[name], Pauses(0.0, state))
        steps.append(result.steps)
        if not result.unfinished:
            break
        state = bytes(result.payload)
    assert steps == list(range(1, 10))
    assert bytes(result.payload) == bytes(whole.payload)
    assert result.sums == whole.sums


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\2{}", b"\xff" * 40])
def test_state_that_is_damaged_or_of_another_task_is_refused(damage: bytes) -> None:
    state = bytes(trained(RULES["sgd"], Pauses(0.0)).payload)
    for data in (damage or state[:-4], state + b"\0\0\0\0"):
        with pytest.raises(LocalError) as refusal:
            paused.from_bytes(data, P, 0)
        assert refusal.value.code is Code.STATE_CORRUPT
    with pytest.raises(LocalError):
        paused.from_bytes(state, P, 1)
