"""The Shakespeare example: windows of a text go to whoever speaks them, and the committed function learns from them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.instance import invoke
from edge_runtime.jobs import Job, JobKind
from fedless.authoring.sign import read_manifest
from fedless.experiments.config import load
from fedless.experiments.datasets import load as read_data
from fedless.experiments.run import _prepare
from fedless.protocol.messages import ClientRule, Optimizer

EXAMPLE = Path("examples/shakespeare").resolve()
FUNCTION = EXAMPLE / "function"
LENGTH = 40
PLAY = "\n\n".join(
    f"{who}:\n{line * 12}" for line in ("Speak, speak. ", "Häst?\t") for who in ("FIRST", "SECOND")
)


@pytest.fixture(scope="module")
def example() -> Any:
    """The example's script, which is no package."""
    found = importlib.util.spec_from_file_location("windows", EXAMPLE / "windows.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_characters_are_numbered_and_strange_ones_become_question_marks(example: Any) -> None:
    assert example.numbered("\n ~?ä\t").tolist() == [0, 1, 95, 32, 32, 32]


def test_blocks_go_to_their_speaker_and_others_are_left_out(example: Any) -> None:
    text = "A play\n\nFIRST:\nOne.\nTwo.\n\nSECOND:\nThree.\n\nFIRST:\nFour.\n"
    assert example.by_speaker(text) == {"FIRST": "One.\nTwo.\nFour.\n", "SECOND": "Three.\n"}


def test_the_label_is_the_next_character_and_no_character_is_in_both_parts(example: Any) -> None:
    text = f"FIRST:\n{''.join(chr(32 + at % 90) for at in range(2000))}"
    train, test, names = example.make(text, 1, LENGTH, 7)
    assert names == ["FIRST"]
    codes = example.numbered(example.by_speaker(text)["FIRST"])
    cut = round(0.9 * len(codes))
    for at, row in enumerate(train["x"]):
        assert row.tolist() == codes[7 * at : 7 * at + LENGTH].tolist()
        assert train["y"][at] == codes[7 * at + LENGTH]
    assert 7 * (len(train["y"]) - 1) + LENGTH < cut
    assert test["x"][0].tolist() == codes[cut : cut + LENGTH].tolist()


def test_each_device_gets_one_speakers_lines_and_not_who_it_is(example: Any, tmp_path: Path) -> None:
    said = {f"SPEAKER {number}": chr(97 + number) * 900 for number in range(10)}
    train, test, _ = example.make(
        "\n\n".join(f"{who}:\n{words}" for who, words in said.items()), 10, LENGTH, 10
    )
    experiment = load(EXAMPLE / "experiment.toml")
    for name, arrays in (("train", train), ("test", test)):
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **arrays)
    data = replace(experiment.data, train=tmp_path / "train.npz", test=tmp_path / "test.npz")
    devices, tests = _prepare(replace(experiment, data=data), 1, read_manifest(FUNCTION))
    assert len(read_data(data, 1).train["speaker"]) == len(train["y"])
    spoken = []
    for number, device in enumerate(devices):
        (tmp_path / f"{number}.npz").write_bytes(device.examples)
        with np.load(tmp_path / f"{number}.npz") as mine:
            assert sorted(mine.files) == ["x", "y"]
            spoken.append(set(np.unique(mine["y"]).tolist()) - {0})
    assert sorted(min(each) for each in spoken) == [66 + number for number in range(10)]
    assert all(len(each) == 1 for each in spoken)
    assert b"speaker" not in tests


def test_the_committed_function_trains_on_windows(example: Any, tmp_path: Path) -> None:
    train, _, _ = example.make(PLAY, 2, LENGTH, 4)
    np.savez(tmp_path / "data.npz", allow_pickle=False, x=train["x"], y=train["y"])
    job = Job(
        JobKind.TRAIN,
        str(FUNCTION),
        str(FUNCTION / "initial.f32"),
        {"kind": "npz", "path": str(tmp_path / "data.npz")},
        ClientRule(Optimizer.ADAM, 0.01, local_epochs=4),
    )
    losses: list[float] = []
    outcome = invoke(
        job,
        timeout_ms=60_000,
        on_event=lambda event: losses.append(event["loss"]) if "loss" in event else None,
    )
    assert outcome.examples == len(train["y"])
    assert losses[-1] < losses[0]


@pytest.mark.long
@pytest.mark.tensorflow
@pytest.mark.timeout(300)
def test_the_committed_function_is_what_its_model_says() -> None:
    from fedless.console.function import load_model

    model = load_model(EXAMPLE / "model.py", "model")
    described = read_manifest(FUNCTION).model
    assert described is not None
    assert (described.parameters, described.batch, described.tensors) == (25_696, model.batch, model.tensors)
    assert (described.inputs, described.labels) == ((model.input,), (model.label,))
    assert (FUNCTION / "initial.f32").read_bytes() == model.initial.astype("<f4").tobytes()


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
def test_the_committed_graph_computes_what_tensorflow_does() -> None:
    from fedless.authoring.check import compare
    from fedless.console.function import load_model

    graph = (FUNCTION / "model.tflite").read_bytes()
    assert compare(load_model(EXAMPLE / "model.py", "model"), graph).gradient_error < 1e-6
