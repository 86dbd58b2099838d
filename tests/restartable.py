"""A local fleet whose aggregator is killed, and starts again on the ports that it first got."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from fedless.experiments.fleet import FEDLESS, LocalFleet

BOUND_S = 120.0


class Restartable:
    """The fleet's aggregator on the ports that it first got."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet = fleet
        self.endpoints = fleet.aggregator_folder / "state" / "endpoints.json"
        ports = {
            name: where[0].rpartition(":")[2]
            for name, where in json.loads(self.endpoints.read_text()).items()
            if where
        }
        settings = fleet.aggregator_folder / "aggregator.toml"
        text = settings.read_text()
        for line, port in (
            ("fleet_port = {}", ports["fleet"]),
            ("enrollment_port = {}", ports["enrollment"]),
            ("\nport = {}", ports["mqtt"]),
        ):
            assert line.format(0) in text
            text = text.replace(line.format(0), line.format(port), 1)
        settings.write_text(text)

    def kill(self) -> None:
        """kill -9 of the aggregator alone; then whatever it left behind, as a machine that starts again has nothing."""
        os.kill(self.fleet.aggregator.process.pid, signal.SIGKILL)
        self.fleet.children.kill(self.fleet.aggregator)
        self.endpoints.unlink(missing_ok=True)

    def start(self, *, wait: bool = True) -> None:
        argv = (*FEDLESS, "aggregator", "serve", "--fleet", str(self.fleet.aggregator_folder))
        self.fleet.aggregator = self.fleet.children.start("aggregator", argv, self.fleet.environment)
        if wait:
            until(self.endpoints.is_file, self.fleet)


def until(
    ready: Callable[[], object], fleet: LocalFleet, pause_s: float = 0.02, bound_s: float = BOUND_S
) -> None:
    end = time.monotonic() + bound_s
    while not ready():
        fleet.children.check()
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(pause_s)
