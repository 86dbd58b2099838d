"""One contract for every TFLite runtime: the example's functions train on it, by numbers that numpy confirms.

Runs on this interpreter's runtime, and on the one of the interpreter that FEDLESS_TFLITE_RUNTIME_PYTHON names
(for tflite-runtime 2.14, which needs numpy < 2 and so an environment of its own).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.data.idx import read_idx
from edge_runtime.instance import environment, invoke
from edge_runtime.jobs import Job, JobKind, Outcome
from fedless.protocol.messages import ClientRule, Optimizer

EXAMPLE = Path("examples/mnist").resolve()
MLP, CNN = EXAMPLE / "function-mlp", EXAMPLE / "function"
OTHER = os.environ.get("FEDLESS_TFLITE_RUNTIME_PYTHON", "")


@pytest.fixture(
    params=[
        pytest.param(sys.executable, id="this"),
        pytest.param(
            OTHER,
            id="other",
            marks=pytest.mark.skipif(not OTHER, reason="FEDLESS_TFLITE_RUNTIME_PYTHON names no interpreter"),
        ),
    ]
)
def python(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def images(tmp_path: Path) -> tuple[NDArray[np.float32], NDArray[Any]]:
    x = read_idx(EXAMPLE / "data" / "train-images-idx3-ubyte")[::78][:64]
    y = read_idx(EXAMPLE / "data" / "train-labels-idx1-ubyte")[::78][:64]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return x.astype(np.float32) / np.float32(255), y


def run(python: str, kind: JobKind, function: Path, data: Path, weights: Path | None = None) -> Outcome:
    rule = ClientRule(Optimizer.SGD, 0.1, local_epochs=1, max_steps=1)
    job = Job(kind, str(function), str(weights or function / "initial.f32"), {"path": str(data)}, rule)
    return invoke(job, timeout_ms=60_000, python=python)


def numpy_mlp(
    x: NDArray[np.float32], y: NDArray[Any]
) -> tuple[NDArray[np.float64], float, int, NDArray[np.float64]]:
    """The MLP's gradient (mean), loss sum, correct count and probabilities, by hand."""
    flat = np.fromfile(MLP / "initial.f32", "<f4").astype(np.float64)
    w0, b0 = flat[:100_352].reshape(784, 128), flat[100_352:100_480]
    w1, b1 = flat[100_480:101_760].reshape(128, 10), flat[101_760:]
    inputs = x.reshape(-1, 784).astype(np.float64)
    hidden = np.maximum(inputs @ w0 + b0, 0)
    logits = hidden @ w1 + b1
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    rows = np.arange(len(y))
    d_logits = probabilities.copy()
    d_logits[rows, y] -= 1
    d_logits /= len(y)
    d_hidden = (d_logits @ w1.T) * (hidden > 0)
    parts = (inputs.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0))
    loss_sum = -float(np.log(probabilities[rows, y]).sum())
    correct = int((probabilities.argmax(1) == y).sum())
    return np.concatenate([part.reshape(-1) for part in parts]), loss_sum, correct, probabilities


def test_a_step_of_the_mlp_is_numpys(python: str, tmp_path: Path, images: Any) -> None:
    x, y = images
    np.savez(tmp_path / "batch.npz", x=np.load(tmp_path / "data.npz")["x"][:32], y=y[:32])
    outcome = run(python, JobKind.TRAIN, MLP, tmp_path / "batch.npz")
    gradient, loss_sum, _, _ = numpy_mlp(x[:32], y[:32])
    delta = np.frombuffer(outcome.payload, "<f4")
    assert np.abs(delta / -0.1 - gradient).max() < 1e-6
    assert outcome.sums["loss"] == pytest.approx(loss_sum, rel=1e-5)


def test_evaluate_and_infer_are_numpys(python: str, tmp_path: Path, images: Any) -> None:
    _, loss_sum, correct, probabilities = numpy_mlp(*images)
    evaluated = run(python, JobKind.EVALUATE, MLP, tmp_path / "data.npz")
    assert evaluated.sums["loss"] == pytest.approx(loss_sum, rel=1e-5)
    assert evaluated.sums["correct"] == correct
    inferred = run(python, JobKind.INFER, MLP, tmp_path / "data.npz")
    found = np.frombuffer(inferred.payload, "<f4").reshape(inferred.shape)
    np.testing.assert_allclose(found, probabilities, atol=1e-6)


def test_the_cnns_gradient_is_the_slope_of_its_loss(python: str, tmp_path: Path, images: Any) -> None:
    """A tiny step along the gradient lowers the loss by its squared norm times the step."""
    y = images[1]
    np.savez(tmp_path / "batch.npz", x=np.load(tmp_path / "data.npz")["x"][:32], y=y[:32])
    step = run(python, JobKind.TRAIN, CNN, tmp_path / "batch.npz")
    gradient = np.frombuffer(step.payload, "<f4").astype(np.float64) / -0.1
    start = np.fromfile(CNN / "initial.f32", "<f4").astype(np.float64)
    rate = 1e-2
    losses = []
    for sign in (-1, 1):
        (start - sign * rate * gradient).astype("<f4").tofile(tmp_path / "moved.f32")
        moved = run(python, JobKind.EVALUATE, CNN, tmp_path / "batch.npz", tmp_path / "moved.f32")
        losses.append(moved.sums["loss"] / 32)
    slope = (losses[0] - losses[1]) / (2 * rate)
    assert slope == pytest.approx(float(gradient @ gradient), rel=0.02)


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("function", "attribute"), [(MLP, "mlp"), (CNN, "model")])
def test_the_examples_pass_the_authors_gate(python: str, function: Path, attribute: str) -> None:
    from fedless.authoring.check import compare
    from fedless.console.function import load_model

    graph = (function / "model.tflite").read_bytes()
    agreement = compare(load_model(EXAMPLE / "model.py", attribute), graph, python)
    assert agreement.gradient_error < 1e-6


def test_the_other_interpreter_has_the_other_runtime() -> None:
    if not OTHER:
        pytest.skip("FEDLESS_TFLITE_RUNTIME_PYTHON names no interpreter")
    code = "from edge_runtime.trainer import runtime_name; print(runtime_name())"
    names = [
        subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, env=environment()
        ).stdout
        for python in (sys.executable, OTHER)
    ]
    assert names[0].split()[0] == "ai-edge-litert"
    assert names[1].split()[0] == "tflite-runtime"
