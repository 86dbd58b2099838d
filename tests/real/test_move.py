"""A fleet moves to another address: a device that was told of it follows, without a new claim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.founding import Ports
from tests.devices_fleet import enrolled, function, online, publisher, say
from tests.edge_processes import Device
from tests.running_fleet import RunningFleet

pytestmark = pytest.mark.real
OLD, NEW = "127.0.0.1", "127.0.0.2"


@pytest.mark.long
def test_device_follows_to_a_new_address(tmp_path: Path, free_port: Callable[[], int]) -> None:
    fleet = RunningFleet(tmp_path / "fleet", ports=Ports(free_port(), free_port(), free_port()))
    fleet.start()
    state = enrolled(fleet, tmp_path / "state", "pi-1", "[agent]\nreconnect_max_s = 1\n")
    device = Device(state)
    try:
        online(fleet, device, "pi-1")
        assert fleet.stop() == 0
        fleet.start(
            FEDLESS__LISTEN__HOSTS=f'["{OLD}", "{NEW}"]'
        )  # it announces where it will be, and is still here
        online(fleet, device, "pi-1")
        before = (state / "identity" / "key.pem").read_bytes()
        assert "done" in say(fleet, "fleet", "renew", "--all", "--valid", "10m")
        assert f"{NEW}:" in (state / "identity" / "fleet.json").read_text()
        assert fleet.stop() == 0
        fleet.start(FEDLESS__LISTEN__HOSTS=f'["{NEW}"]', FEDLESS__LISTEN__ADDRESS=NEW)
        online(fleet, device, "pi-1")
        path = function(tmp_path / "adder.bundle", publisher(fleet), 1)
        assert "done" in say(fleet, "function", "push", path, "--client", "pi-1", "--valid", "10m")
        assert "done" in say(fleet, "fleet", "renew", "--client", "pi-1", "--valid", "10m")
        told = (state / "identity" / "fleet.json").read_text()
        assert f"{OLD}:" not in told, "the old address is forgotten"
        assert (state / "identity" / "key.pem").read_bytes() == before
        assert f"broker={NEW}:" in device.told
    finally:
        device.stop()
        fleet.close()
