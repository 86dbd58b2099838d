"""Two aggregators on one state: one works, the other stands by and takes over."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.running_fleet import FEDLESS, ROOT, STOP_S, RunningFleet, wait_until

pytestmark = pytest.mark.real


@pytest.mark.long
def test_standby_takes_over_from_a_killed_aggregator(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "home")
    fleet.start()
    log = tmp_path / "second.log"
    with log.open("wb") as file:
        second = subprocess.Popen(
            [*FEDLESS, "aggregator", "serve", "--standby", "--fleet", str(fleet.folder)],
            cwd=ROOT, stderr=file, env=dict(os.environ),
        )  # fmt: skip
    try:
        wait_until(lambda: "aggregator_standing_by" in log.read_text(), 40)
        assert "aggregator_ready" not in log.read_text()
        fleet.stop(signal.SIGKILL)
        wait_until(lambda: "aggregator_ready" in log.read_text(), 60)
        with fleet.operator() as operator:
            assert operator.claims(1, 0, ["pi-1"], {})[0].client_id == "pi-1"
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(STOP_S) == 0
        fleet.close()
