"""Personal parameters through the real core: label-skewed MNIST, the device's own training loop and head store.

Each device has the images of two digits (`partition.shards`, as McMahan et al. 2017). What is compared starts from the
same weights, the same data and the same seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import loops, partial
from edge_runtime.data import Dataset
from edge_runtime.data.idx import read_idx
from edge_runtime.heads import Heads
from edge_runtime.optimizers import Vector
from fedless.experiments.partition import shards
from fedless.protocol import wire
from fedless.protocol.layout import Layout
from fedless.protocol.manifest import Input, Label, Manifest, Model, Tensor
from fedless.protocol.messages import CheckIn, Kind, Offer, Task, Ticket
from tests.simulation.helper_world import CLIENTS, HelperWorld, helper_task
from tests.simulation.masked_world import MaskedWorld, masked_task
from tests.simulation.world import BUNDLE, FakeEvaluator, World, task

MNIST = Path("examples/mnist/data").resolve()
DEVICES, EXAMPLES, HIDDEN, ROUNDS = 5, 120, 12, 3
SHAPES = {
    "body/kernel": (49, HIDDEN),
    "body/bias": (HIDDEN,),
    "head/kernel": (HIDDEN, 10),
    "head/bias": (10,),
}
RATES = 'optimizer = "sgd"\nlearning_rate = 0.3\nlocal_epochs = 2\nholdout = 0.25\n'
HEAD = "[personalise]\nlayers = 1\n"
HEADS_BYTES = 1 << 20


def net() -> Model:
    tensors, at = [], 0
    for name, shape in SHAPES.items():
        tensors.append(Tensor(name, shape, at))
        at += tensors[-1].size
    return Model(
        at,
        8,
        "cross_entropy",
        "0" * 64,
        tuple(tensors),
        (Input("x", (49,)),),
        (Label("y", classes=10),),
        ("correct",),
    )


MODEL = net()


def graph(*, params: Vector, x: Any, y: Any, weight: Any) -> dict[str, Any]:
    """49-12-10 with tanh: gradient, loss, and what an evaluation sums."""
    w0, b0, w1, b1 = (params[t.offset : t.offset + t.size].reshape(t.shape) for t in MODEL.tensors)
    hidden = np.tanh(x @ w0 + b0)
    logits = hidden @ w1 + b1
    logits -= logits.max(axis=1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    rows, share = np.arange(len(y)), weight / max(float(weight.sum()), 1.0)
    losses = -np.log(np.maximum(chances[rows, y], 1e-12))
    top = chances.copy()
    top[rows, y] -= 1.0
    top *= share[:, None]
    below = (top @ w1.T) * (1 - hidden**2)
    parts = (x.T @ below, below.sum(0), hidden.T @ top, top.sum(0))
    right = (logits.argmax(1) == y) * weight
    return {
        "grad": np.concatenate([part.ravel() for part in parts]).astype(np.float32),
        "loss": np.array([float((losses * share).sum())]),
        "loss_sum": np.array([float((losses * weight).sum())]),
        "correct": np.array([float(right.sum())]),
    }


def initial() -> Vector:
    random = np.random.default_rng(5)
    return np.concatenate(
        [
            (random.standard_normal(t.shape) * 0.3 if len(t.shape) > 1 else np.zeros(t.shape)).ravel()
            for t in MODEL.tensors
        ]
    ).astype("<f4")


class Evaluator(FakeEvaluator):
    """Knows the net's manifest."""

    def check(self, bundle_digest: bytes) -> Manifest:
        self._blobs.path(bundle_digest)
        return Manifest("skewed", 1, model=MODEL)


@dataclass
class SkewedWorld(World):
    """A few devices, two digits each."""

    count: int = DEVICES
    sent: list[bytes] = field(default_factory=list)
    layout: Layout = field(default_factory=lambda: Layout(0))
    run_id: str = ""
    EVALUATOR = Evaluator

    async def begin(self, more: str) -> str:
        toml = task(ROUNDS, DEVICES, DEVICES, devices=DEVICES).replace("[client]\n", f"[client]\n{RATES}", 1)
        bundle, _ = await self.blobs.put_bytes(BUNDLE)
        weights, _ = await self.blobs.put_bytes(initial().tobytes())
        self.run_id = (await self.runs.start(toml + more, bundle, weights)).run_id
        return self.run_id


@dataclass
class Device:
    """A client as the invocation is one: trains, keeps the head, reports the rest."""

    world: SkewedWorld
    id: str
    heads: Heads
    data: Dataset

    async def serve(self, ticket: Ticket) -> None:
        offer = await self.world.coordinator.check_in(self.id, CheckIn(ticket.round_id, ticket.nonce))
        assert isinstance(offer, Offer)
        task = wire.task_from_bytes(offer.task)
        self.world.layout = task.layout
        shipped = np.fromfile(self.world.blobs.path(ticket.model_digest), "<f4")
        layout = task.layout if task.personal else None
        head = self.heads.own(ticket.run_id, task.layout, ticket.round_id) if layout else None
        start = shipped if head is None else partial.with_head(shipped, task.layout, self.read(head))
        trains = ticket.kind is Kind.TRAIN
        work = loops.Work(
            MODEL,
            graph,
            loops.Feed(MODEL, self.data, labels=True),
            self.data.part(task.holdout, held_out=not trains),
            start,
            layout=layout,
        )
        if trains:
            await self.train(ticket, task, work, offer)
        else:
            result = loops.evaluate(work)
            if layout:
                whole = loops.evaluate(replace(work, parameters=shipped)).sums
                result.sums |= {f"global_{name}": value for name, value in whole.items()}
            await self.report(ticket, offer, result, b"")

    async def train(self, ticket: Ticket, task: Task, work: loops.Work, offer: Offer) -> None:
        result = loops.train(work, task.rule, lambda _event: None)
        update = bytes(result.payload[: 4 * task.layout.common])
        if work.layout is not None:
            own = np.frombuffer(result.payload[4 * task.layout.common :], "<f4")
            self.heads.put(ticket.run_id, ticket.round_id, ticket.bundle_digest.hex(), task.layout, own)
        self.world.sent.append(update)
        await self.report(ticket, offer, result, update)

    async def report(self, ticket: Ticket, offer: Offer, result: loops.Result, data: bytes) -> None:
        assert len(data) == offer.report_bytes
        header = await self.world.header(
            self.id, data, len(self.world.waker.tickets(self.id)), result.examples
        )
        header = replace(header, sums=result.sums)
        offset, complete = await self.world.coordinator.begin_report(self.id, header)
        if not complete:
            await self.world.coordinator.put_report(self.id, ticket.round_id, offset, _one(data))

    def read(self, file: Path) -> Vector:
        return partial.from_bytes(file.read_bytes())[2]


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def pooled(images: Any) -> Vector:
    """28 x 28 bytes as 7 x 7 means from 0 to 1."""
    means: Vector = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49).astype(np.float32) / 255
    return means


@dataclass(frozen=True)
class Ended:
    """A run that is over: its last round's figures, its world and devices."""

    figures: Mapping[str, float]
    world: SkewedWorld
    devices: Sequence[Device]


async def run(folder: Path, more: str) -> Ended:
    """In a world of its own."""
    world = SkewedWorld(folder)
    images, labels = (read_idx(MNIST / f"train-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    x, y, devices = pooled(images), labels.astype(np.int32), []
    for number, mine in enumerate(shards(labels, DEVICES, 2, seed=3)):
        data = Dataset({"x": x[mine][:EXAMPLES], "y": y[mine][:EXAMPLES]}, MODEL)
        devices.append(
            Device(world, f"client-{number}", Heads(folder / f"heads-{number}", HEADS_BYTES), data)
        )
    try:
        run_id = await world.begin(more)
        for nth in range(1, 2 * ROUNDS + 1):  # a round of training, a round of evaluation
            for device in devices:
                await device.serve(await world.ticket(device.id, nth))
        info = await world.ended(run_id)
        assert info.state == "finished", info.reason
        return Ended(dict(info.rounds[-1].metrics), world, devices)
    finally:
        await world.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Ended]:
    """One seed, three ways."""
    ways = {"fedavg": "", "fedper": HEAD, "fedrep": f"{HEAD}epochs = 2\n"}
    return {name: asyncio.run(run(tmp_path_factory.mktemp(name), more)) for name, more in ways.items()}


@pytest.mark.parametrize("way", ["fedper", "fedrep"])
def test_on_skewed_data_the_personalised_models_are_better_than_the_global_one(
    runs: Mapping[str, Ended], way: str
) -> None:
    """By more than ten points, for the worst tenth of the devices as well; same seed, data and first weights."""
    whole, personal = runs["fedavg"].figures, runs[way].figures
    assert personal["device_accuracy"] > whole["device_accuracy"] + 0.1
    assert personal["device_accuracy_worst_decile"] > whole["device_accuracy_worst_decile"] + 0.1
    assert personal["device_accuracy"] > personal["device_global_accuracy"]
    assert "device_global_accuracy" not in whole
    both = ("device_accuracy", "device_global_accuracy")
    assert {f"{name}_p{percent}" for name in both for percent in (10, 50, 90)} <= personal.keys()
    assert personal["device_global_accuracy_worst_decile"] <= personal["device_global_accuracy_p10"]


def test_head_weights_never_appear_in_a_report(runs: Mapping[str, Ended]) -> None:
    """Nor as a difference to what was sent: a report has exactly the shared coordinates, and the model's own stay."""
    world = runs["fedper"].world
    layout = world.layout
    assert (layout.own, layout.common) == (HIDDEN * 10 + 10, 49 * HIDDEN + HIDDEN)
    assert {len(update) for update in world.sent} == {4 * layout.common}
    everything, first = b"".join(world.sent), partial.taken(initial(), layout.personal)
    for device in runs["fedper"].devices:
        file = device.heads.own(world.run_id, layout)
        assert file is not None
        head = device.read(file)
        assert np.abs(head - first).max() > 0.01  # it was trained
        for numbers in (head, head - first):
            told = [row for row in numbers[:-2].reshape(-1, 4) if np.abs(row).min() > 1e-4]
            assert len(told) > 10
            assert not any(row.tobytes() in everything for row in told)
    models = [path for path in (world.folder / "blobs").rglob("*") if path.is_file()]
    models = [path for path in models if path.stat().st_size == 4 * MODEL.parameters]
    assert len(models) == ROUNDS + 1
    for path in models:
        np.testing.assert_array_equal(partial.taken(np.fromfile(path, "<f4"), layout.personal), first)


class Layered(FakeEvaluator):
    """Sixteen weights, the last four of them in a layer of their own."""

    def check(self, bundle_digest: bytes) -> Manifest:
        self._blobs.path(bundle_digest)
        tensors = (Tensor("body/kernel", (12,), 0), Tensor("head/kernel", (4,), 12))
        return Manifest("layered", 1, model=Model(16, 8, "mse", "0" * 64, tensors, (), ()))


class LayeredMaskedWorld(MaskedWorld):
    """Pairwise masks over the shared coordinates."""

    EVALUATOR = Layered


class LayeredHelperWorld(HelperWorld):
    """The helper's masks over the shared coordinates."""

    EVALUATOR = Layered


async def test_under_pairwise_masks_all_clients_share_the_same_coordinates(tmp_path: Path) -> None:
    world = LayeredMaskedWorld(tmp_path)
    try:
        run_id = await world.begin(masked_task(devices=8) + HEAD)
        info = await world.ended(run_id)
        expected = [1 / 8] * 8 + [0.0] * 8
        np.testing.assert_allclose(await world.weights(run_id), expected, atol=6e-6)
        assert info.rounds[0].metrics["device_global_accuracy"] == pytest.approx(0.25, abs=1e-3)
        assert info.rounds[0].metrics["device_accuracy"] == pytest.approx(0.5, abs=1e-3)
    finally:
        await world.close()


async def test_under_the_helpers_masks_all_clients_share_the_same_coordinates(tmp_path: Path) -> None:
    world = LayeredHelperWorld(tmp_path)
    try:
        run_id = await world.start(helper_task() + HEAD)
        for client_id in (await world.cohort(CLIENTS))[:8]:
            await world.take_part(client_id)
        await world.ended(run_id)
        assert len(await world.weights(run_id)) == 16
        assert (await world.weights(run_id))[12:] == [0.0] * 4
    finally:
        await world.close()
