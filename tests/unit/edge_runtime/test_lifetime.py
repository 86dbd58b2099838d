"""When the agent starts a participant for a new certificate: once it is due, ever more seldom, and never before."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edge_runtime.lifetime import FIRST_PAUSE_S, LONGEST_PAUSE_S, NEVER_S, Lifetime

DAY_S = 86_400.0


def certificate(state: Path, spent_s: float, left_s: float) -> None:
    """One that came so long ago and ends so much later."""
    now_ms = time.time() * 1000
    (state / "identity").mkdir(exist_ok=True)
    values = {"issued_at_ms": round(now_ms - spent_s * 1000), "not_after_ms": round(now_ms + left_s * 1000)}
    (state / "identity" / "fleet.json").write_text(json.dumps(values))


def test_it_is_due_after_two_thirds_and_a_little(tmp_path: Path) -> None:
    certificate(tmp_path, 0, 90 * DAY_S)
    found = {Lifetime(str(tmp_path)).due_s() for _ in range(20)}
    assert all(59.9 * DAY_S <= due_s <= 63.1 * DAY_S for due_s in found)
    assert len(found) > 1, "devices that joined together do not renew together"
    certificate(tmp_path, 80 * DAY_S, 10 * DAY_S)
    assert Lifetime(str(tmp_path)).due_s() == 0


def test_attempts_become_more_seldom_until_there_is_a_new_certificate(tmp_path: Path) -> None:
    certificate(tmp_path, 80 * DAY_S, 10 * DAY_S)
    lifetime = Lifetime(str(tmp_path))
    for tries in range(20):
        lifetime.tried()
        lifetime.look()  # the participant has ended, with nothing new
        pause_s = min(FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S)
        assert pause_s / 2 - 1 <= lifetime.due_s() <= pause_s
    certificate(tmp_path, 0, 90 * DAY_S)
    lifetime.look()
    assert lifetime.due_s() > 59 * DAY_S
    lifetime.tried()
    assert lifetime.due_s() <= FIRST_PAUSE_S, "it begins anew"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"issued_at_ms": "x", "not_after_ms": 1}', "{}"])
def test_unreadable_file_is_nobodys_alarm(tmp_path: Path, text: str) -> None:
    assert Lifetime(str(tmp_path)).due_s() == NEVER_S
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "fleet.json").write_text(text)
    assert Lifetime(str(tmp_path)).due_s() == NEVER_S
