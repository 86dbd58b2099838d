"""Jobs on the example's MLP, each in a real instance (a child process with the TFLite runtime)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.data.idx import read_idx
from edge_runtime.instance import environment, invoke
from edge_runtime.jobs import Job, JobKind, Outcome, Part
from fedless.protocol.errors import Code, FedlessError
from fedless.protocol.messages import ClientRule, Optimizer

MLP = Path("examples/mnist/function-mlp").resolve()
MNIST = Path("examples/mnist/data").resolve()
PARAMETERS = 101_770
ADAM = ClientRule(Optimizer.ADAM, 1e-3, local_epochs=2, seed=5)
Make = Callable[..., Job]


@pytest.fixture(scope="module")
def images() -> tuple[NDArray[Any], NDArray[Any]]:
    return read_idx(MNIST / "train-images-idx3-ubyte"), read_idx(MNIST / "train-labels-idx1-ubyte")


@pytest.fixture
def make(tmp_path: Path, images: tuple[NDArray[Any], NDArray[Any]]) -> Make:
    np.savez(tmp_path / "data.npz", x=images[0][:100], y=images[1][:100])

    def job(kind: JobKind = JobKind.TRAIN, **changes: Any) -> Job:
        fields = {
            "kind": kind,
            "function_dir": str(MLP),
            "parameters": str(MLP / "initial.f32"),
            "data": {"path": str(tmp_path / "data.npz")},
            "rule": ADAM,
            **changes,
        }
        return Job(**fields)

    return job


def run(job: Job, **options: Any) -> Outcome:
    return invoke(job, timeout_ms=60_000, **options)


def refusal(job: Job) -> FedlessError:
    with pytest.raises(FedlessError) as caught:
        run(job)
    return caught.value


def delta(outcome: Outcome) -> NDArray[np.float32]:
    return np.frombuffer(outcome.payload, "<f4")


def test_training_gives_a_delta_that_lowers_the_loss(make: Make, tmp_path: Path) -> None:
    before = run(make(JobKind.EVALUATE))
    outcome = run(make())
    assert (outcome.examples, outcome.steps, outcome.shape) == (100, 8, (PARAMETERS,))
    start = np.fromfile(MLP / "initial.f32", "<f4")
    (start + delta(outcome)).tofile(tmp_path / "after.f32")
    after = run(make(JobKind.EVALUATE, parameters=str(tmp_path / "after.f32")))
    assert after.sums["loss"] < 0.8 * before.sums["loss"]
    assert after.sums["correct"] > before.sums["correct"]
    assert {
        "data_ms",
        "load_ms",
        "train_ms",
        "ready_ms",
        "first_step_ms",
        "total_ms",
    } <= outcome.timings_ms.keys()
    assert 10 < outcome.peak_rss_mb < 200


def test_private_training_has_fresh_noise_each_time_and_tells_no_loss(make: Make) -> None:
    private = ClientRule(learning_rate=0.1, example_clip=1.0, example_noise=1.0, max_steps=1)
    first, second = run(make(rule=private)), run(make(rule=private))
    assert first.sums == {}
    apart = delta(first) - delta(second)  # one step: z C lr / B in each of both, since the batch is the same
    assert float(apart.std()) == pytest.approx(np.sqrt(2) * 0.1 / 32, rel=0.05)


def test_the_same_seed_gives_the_same_update(make: Make) -> None:
    assert run(make()).payload == run(make()).payload


def test_another_seed_gives_another_order(make: Make) -> None:
    other = ClientRule(Optimizer.ADAM, 1e-3, local_epochs=2, seed=6)
    assert run(make()).payload != run(make(rule=other)).payload


def test_the_events_tell_the_story(make: Make) -> None:
    events: list[Any] = []
    outcome = run(make(), on_event=events.append)
    names = [event["event"] for event in events]
    assert names[:3] == ["ready", "started", "first_step"]
    assert names[-1] == "done"
    assert set(names[3:-1]) == {"progress"}
    last = events[-2]
    assert (last["epoch"], last["step"], last["of"]) == (2, 8, 8)
    assert outcome.first_step_wall_ms == events[2]["wall_ms"]


def test_max_steps_ends_training_early(make: Make) -> None:
    outcome = run(make(rule=ClientRule(local_epochs=5, max_steps=3)))
    assert outcome.steps == 3
    assert 100 * 1.5 < outcome.sums["loss"] < 100 * 3.5  # of 96 examples seen, told for all 100


def test_examples_beyond_the_last_full_batch_count(make: Make, tmp_path: Path) -> None:
    """33 examples in batches of 32: the second batch has one, and the mean is over that one."""
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "odd.npz", x=data["x"][:33], y=data["y"][:33])
    evaluated = run(make(JobKind.EVALUATE, data={"path": str(tmp_path / "odd.npz")}))
    assert (evaluated.examples, evaluated.steps) == (33, 0)
    assert 33 * 1.5 < evaluated.sums["loss"] < 33 * 3.5


def test_parts_add_up(make: Make) -> None:
    whole = run(make(JobKind.EVALUATE))
    parts = [run(make(JobKind.EVALUATE, part=part, holdout=0.3)) for part in (Part.TRAINING, Part.HELD_OUT)]
    assert [part.examples for part in parts] == [70, 30]
    assert sum(part.sums["loss"] for part in parts) == pytest.approx(whole.sums["loss"], rel=1e-5)


def test_training_on_the_training_part_counts_it_only(make: Make) -> None:
    assert run(make(part=Part.TRAINING, holdout=0.3)).examples == 70


def test_fedprox_stays_nearer_to_the_start(make: Make) -> None:
    free = run(make(rule=ClientRule(Optimizer.SGD, 0.1, local_epochs=5)))
    held = run(make(rule=ClientRule(Optimizer.SGD, 0.1, local_epochs=5, proximal_mu=1.0)))
    assert np.linalg.norm(delta(held)) < 0.9 * np.linalg.norm(delta(free))


def test_infer_gives_probabilities_in_order_without_labels(make: Make, tmp_path: Path) -> None:
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "x.npz", x=data["x"][:40])
    outcome = run(make(JobKind.INFER, data={"path": str(tmp_path / "x.npz")}))
    assert outcome.shape == (40, 10)
    probabilities = delta(outcome).reshape(outcome.shape)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)


def test_diverging_training_is_refused(make: Make) -> None:
    assert refusal(make(rule=ClientRule(Optimizer.SGD, 1e30, local_epochs=3))).code is Code.NOT_FINITE


def test_model_of_the_wrong_length_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "short.f32").write_bytes(b"\0" * 400)
    error = refusal(make(parameters=str(tmp_path / "short.f32")))
    assert error.code is Code.WRONG_LENGTH
    assert "407080" in str(error)


def test_data_that_does_not_fit_is_refused_before_training(make: Make, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((3, 28, 28), np.uint8), y=np.array([1, 2, 10]))
    events: list[Any] = []
    with pytest.raises(FedlessError) as caught:
        run(make(data={"path": str(tmp_path / "bad.npz")}), on_event=events.append)
    assert caught.value.code is Code.DATA_RANGE
    assert [event["event"] for event in events] == ["ready", "started", "failed"]


def test_a_damaged_graph_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "function.toml").write_bytes((MLP / "function.toml").read_bytes())
    (tmp_path / "model.tflite").write_bytes(b"not a model" * 100)
    assert refusal(make(function_dir=str(tmp_path))).code is Code.MODEL_NOT_PORTABLE


def test_a_graph_that_does_not_fit_its_manifest_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "function.toml").write_bytes((MLP / "function.toml").read_bytes())
    cnn = MLP.parent / "function" / "model.tflite"
    (tmp_path / "model.tflite").write_bytes(cnn.read_bytes())
    assert refusal(make(function_dir=str(tmp_path))).code is Code.MODEL_NOT_PORTABLE


def test_a_job_survives_json() -> None:
    job = Job(JobKind.EVALUATE, "f", "p", {"path": "d"}, ADAM, Part.HELD_OUT, 0.2, 2, 100)
    assert Job.from_json(job.to_json()) == job


def test_an_instance_imports_nothing_that_training_does_not_need() -> None:
    """A start pays for every import: no gRPC, no cryptography, no protobuf, no Pillow, no pyarrow, no logging."""
    code = "import sys, edge_runtime.trainer; print('\\n'.join({name.split('.')[0] for name in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    foreign = {
        "grpc",
        "cryptography",
        "google",
        "PIL",
        "pyarrow",
        "paho",
        "sqlite3",
        "tensorflow",
        "pydantic",
        "ssl",
    }
    assert not foreign & set(found.stdout.split())
