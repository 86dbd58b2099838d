"""One aggregator per state directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator import lock
from fedless.protocol.errors import Code, LocalError


def test_second_aggregator_on_the_same_state_is_refused(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from aggregator import lock
with lock.hold(Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LocalError) as caught, lock.hold(tmp_path):
            pass
        other.kill()
    assert caught.value.code is Code.STATE_LOCKED
    assert f"Process {other.pid} holds" in caught.value.detail
    with lock.hold(tmp_path):  # the lock died with its process
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_state_is_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with lock.hold(tmp_path / "state"):
            (tmp_path / "state" / "file").touch()
            assert stat.S_IMODE((tmp_path / "state" / "file").stat().st_mode) == 0o600
        (tmp_path / "after").touch()
        assert stat.S_IMODE((tmp_path / "after").stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError) as caught, lock.hold(tmp_path / "file" / "state"):
        pass
    assert caught.value.code is Code.STATE_MISSING
