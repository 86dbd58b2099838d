"""Signing needs no tensorflow, packs what belongs into a bundle, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from fedless.authoring.sign import initial_weights, pack_and_sign, read_private_key
from fedless.protocol import bundle_format, crypto
from fedless.protocol.errors import Code, FedlessError

MLP = Path("examples/mnist/function-mlp").resolve()
RAW = bytes(range(32))


@pytest.fixture
def function(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MLP, tmp_path / "function"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "publisher.pem"
    private = ed25519.Ed25519PrivateKey.from_private_bytes(RAW)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def refusal(function: Path, key: Path) -> Code:
    with pytest.raises(FedlessError) as caught:
        pack_and_sign(function, key)
    return caught.value.code


def test_a_bundle_has_the_function_and_not_the_weights(function: Path, key: Path) -> None:
    (function / "provider.py").write_text("x = 1\n")
    (function / "pkg").mkdir()
    (function / "pkg" / "more.py").write_text("y = 2\n")
    (function / "__pycache__").mkdir()
    (function / "__pycache__" / "provider.py").write_text("no")
    (function / "secret.pem").write_text("no")
    (function / "link.py").symlink_to("/etc/passwd")
    header = bundle_format.read_header(pack_and_sign(function, key))
    public = crypto.ed25519_public(RAW)
    bundle_format.verify(header, {crypto.key_id(public): public})
    files = bundle_format.unpack(header.archive)
    assert sorted(files) == ["function.toml", "model.tflite", "pkg/more.py", "provider.py"]
    assert files["model.tflite"] == (MLP / "model.tflite").read_bytes()


def test_the_same_function_and_key_give_the_same_bundle(function: Path, key: Path) -> None:
    assert pack_and_sign(function, key) == pack_and_sign(MLP, key)


def test_a_raw_key_is_as_good_as_pem(tmp_path: Path, key: Path) -> None:
    (tmp_path / "raw").write_bytes(RAW)
    assert read_private_key(tmp_path / "raw") == read_private_key(key) == RAW


def test_keys_that_are_no_publishers_keys_are_refused(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    wrong = {
        "ecdsa": ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "encrypted": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        "text": b"hello",
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        assert refusal(MLP, tmp_path / name) is Code.CONFIG_INVALID
    assert refusal(MLP, tmp_path / "absent") is Code.STATE_MISSING


def test_an_error_does_not_show_the_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"hunter2-hunter2-hunter2")
    with pytest.raises(FedlessError) as caught:
        pack_and_sign(MLP, tmp_path / "key")
    assert "hunter2" not in str(caught.value) + repr(caught.value)


def test_a_directory_that_is_no_function_is_refused(tmp_path: Path, key: Path) -> None:
    assert refusal(tmp_path, key) is Code.STATE_MISSING


def test_a_function_without_its_graph_is_refused(function: Path, key: Path) -> None:
    (function / "model.tflite").unlink()
    assert refusal(function, key) is Code.STATE_MISSING


def test_the_initial_weights_are_checked(function: Path) -> None:
    assert hashlib.sha256(initial_weights(function)).hexdigest() in (MLP / "function.toml").read_text()
    data = bytearray((function / "initial.f32").read_bytes())
    data[5] ^= 1
    (function / "initial.f32").write_bytes(data)
    with pytest.raises(FedlessError) as caught:
        initial_weights(function)
    assert caught.value.code is Code.STATE_CORRUPT


def test_signing_imports_no_tensorflow() -> None:
    code = (
        "import sys, fedless.authoring.sign, fedless.console.function; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
