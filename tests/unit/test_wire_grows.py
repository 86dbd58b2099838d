"""The wire only grows: whatever a released version says, a newer one still understands, and says itself.

`tests/recordings/<version>.json` is the schema of a release: every service, method, message, field (number, type,
label) and enum value. A field that is renumbered, retyped or removed breaks devices in the field, and this test.
`make record` writes the file of the present version; it is committed with a release and never changed afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recordings.schema import present

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("*.json"))


def missing(old: Any, new: Any, path: str = "") -> list[str]:
    """What of the old schema the new one does not have."""
    if not isinstance(old, dict):
        return [] if old == new else [f"{path}: was {old}, is {new}"]
    if not isinstance(new, dict):
        return [f"{path}: is gone"]
    return [line for key, value in old.items() for line in missing(value, new.get(key), f"{path}/{key}")]


def test_there_is_a_recording() -> None:
    assert RECORDINGS


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_released_schema_is_still_spoken(path: Path) -> None:
    assert missing(json.loads(path.read_text()), present()) == []


def test_renumbered_removed_and_retyped_fields_are_found() -> None:
    old = json.loads(RECORDINGS[0].read_text())
    for change in ({"number": 99}, {"type": "bool"}, {"label": "repeated"}):
        new = json.loads(RECORDINGS[0].read_text())
        new["messages"]["CheckInRequest"]["round_id"] |= change
        assert len(missing(old, new)) == 1
    del new["messages"]["CheckInRequest"]["nonce"]
    del new["services"]["Rounds"]["CheckIn"]
    assert len(missing(old, new)) == 3
