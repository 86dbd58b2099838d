"""A function of one's own: begun in one step, tried in the device's sandbox, its mistakes told with a code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedless.authoring.own import begin, try_out
from fedless.authoring.sign import function_files
from fedless.protocol.errors import Code, FedlessError


def refusal(folder: Path, code: str, event: object = None) -> FedlessError:
    (folder / "main.py").write_text(code)
    with pytest.raises(FedlessError) as caught:
        try_out(folder, event, {})
    return caught.value


def test_what_is_begun_runs_and_packs(tmp_path: Path) -> None:
    begin(tmp_path, "greeter")
    assert try_out(tmp_path, {"a": [1]}, {}).answer == {"function": "greeter", "event": {"a": [1]}}
    assert set(function_files(tmp_path)) == {"function.toml", "main.py"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    begin(tmp_path, "greeter")
    with pytest.raises(FedlessError) as caught:
        begin(tmp_path, "greeter")
    assert caught.value.code is Code.STATE_EXISTS


def test_data_mounts_are_given_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "function"
    begin(folder, "reader")
    path = folder / "function.toml"
    path.write_text(path.read_text().replace("data_mounts = []", 'data_mounts = ["notes"]'))
    (folder / "main.py").write_text(
        "def handle(event, context):\n    return open(context.data['notes']).read()\n"
    )
    (tmp_path / "notes.txt").write_text("noted")
    with pytest.raises(FedlessError) as caught:
        try_out(folder, None, {})
    assert caught.value.code is Code.DATA_MISSING
    assert try_out(folder, None, {"notes": tmp_path / "notes.txt"}).answer == "noted"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def other(event, context): pass\n", Code.INSTANCE_FAILED),
        ("import absent_module\n", Code.INSTANCE_FAILED),
        ("syntax error\n", Code.INSTANCE_FAILED),
        ("def handle(event, context): raise KeyError('x')\n", Code.INSTANCE_FAILED),
        ("def handle(event, context): return {1, 2}\n", Code.INSTANCE_BAD_RESULT),
        ("def handle(event, context): return bytearray(1 << 30)\n", Code.INSTANCE_MEMORY),
        ("def handle(event, context): raise SystemExit(3)\n", Code.INSTANCE_FAILED),
        ("import os\ndef handle(event, context): os._exit(0)\n", Code.INSTANCE_FAILED),
    ],
)
def test_mistakes_of_a_function(tmp_path: Path, code: str, expected: Code) -> None:
    begin(tmp_path, "wrong")
    assert refusal(tmp_path, code).code is expected


def test_the_context_knows_the_time_that_is_left(tmp_path: Path) -> None:
    begin(tmp_path, "timed")
    (tmp_path / "main.py").write_text("def handle(event, context):\n    return context.remaining_ms()\n")
    left = try_out(tmp_path, None, {}).answer
    assert isinstance(left, int)
    assert 0 < left <= 10_000


def test_a_name_that_none_is(tmp_path: Path) -> None:
    with pytest.raises(FedlessError) as caught:
        begin(tmp_path, "Not A Name")
    assert caught.value.code is Code.RESERVED_NAME
