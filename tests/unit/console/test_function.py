"""`fedless function`: what it prints and writes, and what it says where tensorflow is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedless.console.function import app
from fedless.protocol import bundle_format
from fedless.protocol.errors import Code, LocalError

MLP = Path("examples/mnist/function-mlp").resolve()
MODEL = Path("examples/mnist/model.py").resolve()


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_sign_and_show(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    bundle = tmp_path / "mlp.bundle"
    said = call("sign", MLP, "--key", tmp_path / "key", "-o", bundle)
    digest = bundle_format.digest(bundle.read_bytes())
    assert digest in said
    shown = call("show", bundle)
    for expected in (
        "mnist-mlp version 1",
        "101770 parameters",
        "10 classes",
        "dense/kernel",
        digest,
        "not checked",
    ):
        assert expected in shown


def test_show_takes_a_directory_and_a_manifest() -> None:
    assert call("show", MLP) == call("show", MLP / "function.toml")


def test_show_without_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        call("show", tmp_path / "absent")
    assert caught.value.code is Code.STATE_MISSING


def test_build_without_tensorflow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalError) as caught:
        call("build", MODEL, "-o", tmp_path / "out")
    assert caught.value.code is Code.NOT_INSTALLED
    assert "fedless[authoring]" in str(caught.value)


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
def test_build_takes_a_keras_model_and_the_provider_beside_it(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(
        "import keras\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation='softmax')])\n"
    )
    (tmp_path / "provider.py").write_text("def load(path, options): ...\n")
    lines = ["a,b,c,d,y", *(f"{n % 3},{n % 2},1,{-n % 3},{n % 3}" for n in range(60))]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    data = ("--data", tmp_path / "data.csv")
    said = call("build", tmp_path / "my_model.py", "-o", tmp_path / "out", "--version", "4", *data)
    assert "function    my-model version 4" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["function.toml", "initial.f32", "model.tflite", "provider.py"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("content", ["x = 1\n", "def model(): return 5\n"])
def test_build_of_a_file_without_a_model_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.py").write_text(content)
    with pytest.raises(LocalError) as caught:
        call("build", tmp_path / "m.py", "-o", tmp_path / "out")
    assert caught.value.code is Code.CONFIG_INVALID
