"""The manifest: what it says survives the round trip, and every mistake is found, all at once."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.manifest import (
    MAX_MANIFEST_BYTES,
    Check,
    Input,
    Label,
    Manifest,
    Model,
    Randomness,
    Tensor,
    dump,
    parse,
    parse_bytes,
)

MODEL = Model(
    parameters=16,
    batch=4,
    loss="softmax_cross_entropy",
    initial_sha256="ab" * 32,
    tensors=(Tensor("dense/kernel", (7, 2), 0), Tensor("dense/bias", (2,), 14)),
    inputs=(Input("x", (7,), "float32", -1.0, 1.5),),
    labels=(Label("y", (), "int32", 2),),
    metrics=("correct",),
    randomness=(Randomness("dropout_mask", (7,), 0.75),),
)
MANIFEST = Manifest(
    name="tiny",
    version=3,
    memory_mb=128,
    network=True,
    data_mounts=("meter", "camera-1"),
    licence='Apache-2.0 "quoted" \\ ü',
    model=MODEL,
    check=Check("2.21.0", "ai-edge-litert 2.3.0", 9e-08, 1234, 56),
)


def complaint(text: str) -> str:
    with pytest.raises(PeerError) as caught:
        parse(text)
    assert caught.value.code is Code.MANIFEST_INVALID
    return caught.value.detail


def test_what_is_dumped_is_parsed_again() -> None:
    assert parse(dump(MANIFEST)) == MANIFEST


def test_a_function_without_a_model_is_a_manifest() -> None:
    plain = Manifest("hello", 1, entry="app.main:handle")
    assert parse(dump(plain)) == plain


def test_the_same_manifest_gives_the_same_text() -> None:
    assert dump(MANIFEST) == dump(dataclasses.replace(MANIFEST))


def test_left_out_limits_have_defaults() -> None:
    manifest = parse('format = 1\n[function]\nname = "a"\nversion = 1\nentry = "m:f"\n')
    assert (manifest.memory_mb, manifest.timeout_ms, manifest.network) == (512, 600_000, False)


def test_all_mistakes_are_reported_at_once() -> None:
    text = dump(MANIFEST)
    text = text.replace("version = 3", 'version = "three"').replace("memory_mb = 128", "memory_mb = 1")
    text = text.replace("network = true", "network = 1\ncolour = 5").replace("batch = 4", "batch = 0")
    found = complaint(text)
    for expected in (
        "function.version: must be an integer",
        "function.memory_mb: must be an integer from 16",
        "function.network: must be true or false",
        "function.colour: unknown key",
        "model.batch: must be an integer from 1",
    ):
        assert expected in found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("format = 1", "format = 2", "format: must be an integer from 1 to 1"),
        ('name = "tiny"', 'name = "../tiny"', "function.name"),
        ('name = "tiny"', "", "function.name: missing"),
        ("version = 3", "version = true", "function.version"),
        ('entry = "fedless:train"', 'entry = "os; rm"', "function.entry"),
        ("data_mounts = [", 'data_mounts = ["/etc", ', "function.data_mounts"),
        ("parameters = 16", "parameters = 17", "the tensors have 16 elements"),
        ("offset = 14", "offset = 13", "begins at 13, but the one before it ends at 14"),
        ("shape = [7, 2]", "shape = [7, -2]", "model.tensors[0].shape"),
        ("shape = [7, 2]", "shape = [1, 1, 1, 7, 2]", "at most 4 integers"),
        ("classes = 2", "classes = -1", "model.labels[0].classes"),
        ("minimum = -1.0", "minimum = 2.0", "model.inputs[0].minimum"),
        ("minimum = -1.0\n", "", "model.inputs[0].minimum"),
        ("maximum = 1.5", "maximum = nan", "model.inputs[0].minimum"),
        ("keep = 0.75", "keep = 0", "model.randomness[0].keep"),
        ("keep = 0.75", "keep = nan", "model.randomness[0].keep"),
        ('name = "x"', 'name = "params"', "the input name params is reserved"),
        ('name = "x"', 'name = "y"', "name y occurs twice"),
        ('name = "dense/bias"', 'name = "dense/kernel"', "tensor name dense/kernel occurs twice"),
        ('metrics = ["correct"]', 'metrics = ["loss_sum"]', "metric name loss_sum occurs twice"),
        (f'initial_sha256 = "{"ab" * 32}"', 'initial_sha256 = "AB"', "model.initial_sha256"),
        ('dtype = "int32"', 'dtype = "float32"', "label y has classes"),
        ("runtime_max = 1", "runtime_max = 10001", "function.runtime_max"),
        ("runtime_min = 1", "runtime_min = 2", "runtime_min is above"),
        ("[check]", "[checks]", "checks: unknown key"),
    ],
)
def test_a_wrong_field_is_named(old: str, new: str, expected: str) -> None:
    text = dump(MANIFEST)
    assert old in text
    assert expected in complaint(text.replace(old, new, 1))


def test_the_builtin_entry_needs_a_model() -> None:
    assert "needs a [model] table" in complaint('format = 1\n[function]\nname = "a"\nversion = 1\n')


def test_text_that_is_not_toml_is_refused() -> None:
    assert "not TOML" in complaint("format = = 1")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"#" * (MAX_MANIFEST_BYTES + 1)])
def test_bytes_that_cannot_be_a_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        parse_bytes(data)
    assert caught.value.code is Code.MANIFEST_INVALID


def test_a_complaint_does_not_repeat_a_long_value() -> None:
    found = complaint(dump(MANIFEST).replace('name = "tiny"', f'name = "{"A" * 5000}"'))
    assert len(found) < 400
    assert re.search(r"AAA\.\.\.", found)
