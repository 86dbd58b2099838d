"""From a model to a trained one: built, signed, unpacked as a device does, trained in an instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import bundle
from edge_runtime.instance import invoke
from edge_runtime.jobs import Job, JobKind, Outcome
from fedless.authoring.sign import pack_and_sign
from fedless.protocol import bundle_format, crypto
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Manifest
from fedless.protocol.messages import ClientRule, Optimizer

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]
KEY = bytes(32)
PUBLIC = crypto.ed25519_public(KEY)


class Device:
    """A function on a device: bundle unpacked, weights in a file."""

    def __init__(self, model: Any, folder: Path, data: dict[str, Any]) -> None:
        from fedless.authoring.build import build_function

        self.manifest: Manifest = build_function(model, folder / "function", name="tiny")
        (folder / "key").write_bytes(KEY)
        packed = pack_and_sign(folder / "function", folder / "key")
        digest = bundle_format.digest(packed)
        self.unpacked = bundle.unpack(packed, digest, {crypto.key_id(PUBLIC): PUBLIC}, folder / "bundles")
        self.weights = folder / "function" / "initial.f32"
        self.data = data

    def run(self, kind: JobKind, rule: ClientRule | None = None) -> Outcome:
        job = Job(kind, str(self.unpacked.directory), str(self.weights), self.data, rule or ClientRule())
        return invoke(job, timeout_ms=60_000)

    def train(self, rule: ClientRule) -> None:
        outcome = self.run(JobKind.TRAIN, rule)
        after = np.fromfile(self.weights, "<f4") + np.frombuffer(outcome.payload, "<f4")
        self.weights = self.weights.with_name("after.f32")
        after.tofile(self.weights)


def test_regression_from_csv(tmp_path: Path) -> None:
    from fedless.authoring.layers import Dense
    from fedless.authoring.model import MSE, Model
    from fedless.protocol.manifest import Input

    x = np.random.default_rng(0).standard_normal((200, 3))
    y = x @ [1.0, -2.0, 0.5] + 3
    lines = [",".join(map(str, (*row, value))) for row, value in zip(x, y, strict=True)]
    (tmp_path / "meter.csv").write_text("\n".join(["a,b,c,y", *lines]))
    model = Model([Dense(1)], input=Input("x", (3,)), loss=MSE, batch=16)
    device = Device(model, tmp_path, {"path": str(tmp_path / "meter.csv")})
    before = device.run(JobKind.EVALUATE).sums
    device.train(ClientRule(Optimizer.MOMENTUM, 0.05, local_epochs=20))
    after = device.run(JobKind.EVALUATE).sums
    assert after["loss"] < 1e-3 * before["loss"]
    assert after["absolute_error"] < 0.05 * before["absolute_error"]
    np.testing.assert_allclose(np.fromfile(device.weights, "<f4"), [1.0, -2.0, 0.5, 3.0], atol=0.02)


def test_a_model_that_does_not_learn_the_given_data_is_refused(tmp_path: Path) -> None:
    """A layer that sees nothing, and as many examples of each class: the loss begins at its least."""
    from collections.abc import Sequence

    import tensorflow as tf

    from fedless.authoring.build import build_function
    from fedless.authoring.layers import Layer, Weight
    from fedless.authoring.model import Model
    from fedless.protocol.manifest import Input

    class Blind(Layer):
        def weights(self, shape: tuple[int, ...]) -> Sequence[Weight]:
            return (Weight("bias", (2,), "zeros"),)

        def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
            return (2,)

        def apply(self, weights: Sequence[Any], x: Any) -> Any:
            return tf.reduce_mean(x, axis=1, keepdims=True) * 0.0 + weights[0]

    np.savez(tmp_path / "data.npz", x=np.zeros((64, 3)), y=np.arange(64) % 2)
    model = Model([Blind()], input=Input("x", (3,)), batch=64)
    with pytest.raises(LocalError) as caught:
        build_function(model, tmp_path / "out", name="blind", data={"path": str(tmp_path / "data.npz")})
    assert caught.value.code is Code.MODEL_NOT_PORTABLE
    assert "do not lower the loss" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sequences_with_dropout(tmp_path: Path) -> None:
    """Which of two tokens came first: order, so memory, is needed; the masks come from the client."""
    from fedless.authoring.layers import Dense, Dropout
    from fedless.authoring.model import Model
    from fedless.authoring.recurrent import LSTM, Embedding
    from fedless.protocol.manifest import Input

    random = np.random.default_rng(1)
    x = random.integers(2, 6, (256, 5))
    y = random.integers(0, 2, 256)
    for row, label in zip(x, y, strict=True):
        places = np.sort(random.choice(5, 2, replace=False))
        row[places] = (label, 1 - label)
    np.savez(tmp_path / "text.npz", x=x, y=y)
    layers = [Embedding(6, 8), LSTM(16), Dropout(0.2), Dense(2)]
    device = Device(
        Model(layers, input=Input("x", (5,), "int32", 0.0, 5.0), batch=32),
        tmp_path,
        {"path": str(tmp_path / "text.npz")},
    )
    assert device.manifest.model is not None
    assert [item.name for item in device.manifest.model.randomness] == ["dropout_mask"]
    device.train(ClientRule(Optimizer.ADAM, 0.02, local_epochs=15))
    assert device.run(JobKind.EVALUATE).sums["correct"] > 0.95 * 256
    assert device.run(JobKind.INFER).shape == (256, 2)
