"""When a device asks for new keys: not more often than said, and not never because its clock was set back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from edge_runtime.journal import Journal
from edge_runtime.renewals import ASK_AGAIN_MS, Renewals
from fedless.protocol.errors import Code, LocalError


def test_unknown_keys_are_asked_for_once_an_hour_also_after_the_clock_was_set_back(tmp_path: Path) -> None:
    own = cast("Any", object())
    asked: list[int] = []

    def link() -> Any:
        asked.append(1)
        raise LocalError(Code.AGGREGATOR_UNREACHABLE, "away")

    journal = Journal.open(tmp_path / "journal.db")
    renewals = Renewals(tmp_path, journal, link)
    try:
        for now_ms, asks in (
            (10 * ASK_AGAIN_MS, 1),
            (10 * ASK_AGAIN_MS + 1, 0),
            (ASK_AGAIN_MS, 1),
            (ASK_AGAIN_MS, 0),
        ):
            asked.clear()
            if asks:
                with pytest.raises(LocalError):
                    renewals.for_unknown_key(own, now_ms)
            else:
                assert renewals.for_unknown_key(own, now_ms) is own
            assert len(asked) == asks
    finally:
        journal.close()
