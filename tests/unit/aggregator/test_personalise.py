"""[personalise] of a task: which tensors it means, what it cannot go with, and that nobody changes a personal part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator import commit, planning, tasks
from aggregator.blobs import Blobs
from aggregator.demand import Client, Service
from aggregator.feasible import refusals
from aggregator.planning import Package
from aggregator.store.records import ModelRecord
from aggregator.strategies import make
from aggregator.uploads import BLOCK
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.layout import Layout
from fedless.protocol.manifest import Manifest, Model, Tensor

SIZES = {
    "conv/kernel": 9,
    "conv/bias": 3,
    "dense/kernel": 12,
    "dense/bias": 4,
    "dense_1/kernel": 8,
    "scale": 2,
}
GOOD = 'name = "a-task"\nfunction = "a.bundle"\nmode = "plain"\nrounds = 3\n{top}[cohort]\nsize = 10\n{more}'


def model() -> Model:
    tensors, at = [], 0
    for name, size in SIZES.items():
        tensors.append(Tensor(name, (size,), at))
        at += size
    return Model(at, 8, "mse", "", tuple(tensors), (), ())


def package() -> Package:
    return Package(Manifest("f", 1, model=model()), bytes(32), 1000)


def settings(layers: str, top: str = "", more: str = "") -> tasks.TaskSettings:
    return tasks.parse(GOOD.format(top=top, more=f"{more}[personalise]\nlayers = {layers}\n"))


@pytest.mark.parametrize(
    ("layers", "personal"),
    [
        ('["dense"]', ((12, 16),)),
        ('["dense/bias", "dense_1"]', ((24, 12),)),
        ('["conv", "scale"]', ((0, 12), (36, 2))),
        ("1", ((36, 2),)),
        ("2", ((28, 10),)),
    ],
)
def test_layers_by_name_and_by_number(layers: str, personal: tuple[tuple[int, int], ...]) -> None:
    task = planning.task(settings(layers), package())
    assert task.personal == personal
    assert task.layout.common == sum(SIZES.values()) - sum(size for _, size in personal)


@pytest.mark.parametrize(
    ("layers", "why"), [('["dens"]', "found dens"), ("4", "nothing"), ('["conv", "x"]', "found x")]
)
def test_layers_that_are_not_there_and_all_of_them_are_refused(layers: str, why: str) -> None:
    with pytest.raises(PeerError, match=why) as caught:
        planning.task(settings(layers), package())
    assert caught.value.code is Code.CONFIG_INVALID


@pytest.mark.parametrize(
    ("top", "more", "why"),
    [
        ('strategy = "scaffold"\n', "", "scaffold"),
        ("", "[stop]\ntest_accuracy = 0.9\n", "nobody's personal"),
        ("", "[client]\nmax_steps = 3\n", "max_steps"),
        ("", '[privacy]\nnoise = "local"\nmultiplier = 1.0\nclip = 1.0\n', "ledger"),
    ],
)
def test_what_cannot_go_with_it_is_told(top: str, more: str, why: str) -> None:
    text = GOOD.format(top=top, more=f"{more}[personalise]\nlayers = 1\nepochs = 2\n")
    with pytest.raises(LocalError, match=why):
        tasks.parse(text)


def test_a_plan_counts_the_shared_part_and_all_epochs() -> None:
    wanted = planning.wanted(settings("2"), package(), 10)
    assert (wanted.words, wanted.parameters, wanted.keeps) == (28, 38, True)


def test_cloud_functions_cannot_take_part_and_a_plan_says_why() -> None:
    clients = [Client(f"fn-{n}", platform="lambda", memory_mb=4096) for n in range(12)]
    wanted = planning.wanted(settings("2"), package(), 12)
    (refusal,) = refusals(wanted, clients, Service({}, 0), 0)
    assert refusal.code is Code.FUNCTION_LIMIT
    assert "no personal parameters" in refusal.reason
    assert list(refusals(replace(wanted, keeps=False), clients, Service({}, 0), 0)) == []


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_the_next_model_has_the_personal_part_of_the_one_before(name: str, tmp_path: Path) -> None:
    """Over more than one block, with ranges at the start, across a block's border, and at the end."""
    size = 2 * BLOCK + 100
    layout = Layout(size, ((0, 7), (BLOCK - 5, 50), (BLOCK + 200, 1), (size - 3, 3)))
    blobs, random = Blobs(tmp_path / "blobs"), np.random.default_rng(0)
    whole = random.normal(size=size).astype("<f4")
    (digest,) = blobs.put_together([[whole.data.cast("B")]], 1)
    mask = np.zeros(size, bool)
    for at, count in layout.personal:
        mask[at : at + count] = True
    mean = random.normal(size=layout.common)
    strategy = make(name, {})
    old = ModelRecord(0, digest, 0)
    for number in (1, 2):
        blocks = [mean[at : at + BLOCK] for at in range(0, layout.common, BLOCK)]
        new = commit.next_model(blobs, old, blocks, strategy, number, layout)
        before = np.fromfile(blobs.path(old.digest), "<f4")
        names = list(strategy.state)
        kept = [np.fromfile(blobs.path(old.state[n]), "<f4") if old.version else
                np.full(layout.common, strategy.state[n], np.float32) for n in names]  # fmt: skip
        expected, state = strategy.step(before[~mask], mean, kept)
        found = np.fromfile(blobs.path(new.digest), "<f4")
        np.testing.assert_array_equal(found[mask], whole[mask])
        np.testing.assert_allclose(found[~mask], expected, rtol=1e-6)
        for each, values in zip(names, state, strict=True):
            np.testing.assert_allclose(np.fromfile(blobs.path(new.state[each]), "<f4"), values, rtol=1e-6)
        old = new
