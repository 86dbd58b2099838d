"""A revoked device loses its open connection, at the child broker and at one of the operator's own; others stay."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from aggregator.founding import Ports
from tests.devices_fleet import enrolled, online, say
from tests.edge_processes import Device, end
from tests.running_fleet import RunningFleet, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]


def agent(state: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        return dict(json.loads((state / "agent.json").read_text()))
    return {}


def joined(fleet: RunningFleet, state: Path, client_id: str) -> Device:
    """A device that is connected; it comes back within a second whenever it is cut."""
    enrolled(fleet, state, client_id, "[agent]\nreconnect_max_s = 1\n")
    return online(fleet, Device(state), client_id)


def test_revoked_device_loses_its_open_connection_and_others_stay(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "fleet")
    fleet.start()
    lost, other = tmp_path / "lost", tmp_path / "other"
    devices = [joined(fleet, lost, "lost"), joined(fleet, other, "other")]
    try:
        before = agent(other)
        say(fleet, "fleet", "revoke", "lost")
        wait_until(
            lambda: "connection_cut" in fleet.log.read_text(), 60
        )  # and its place was held for three seconds
        assert agent(lost)["state"] == "disconnected"
        assert agent(other) == before
        assert "lost" in say(fleet, "fleet", "list")
        with fleet.operator() as operator:
            assert operator.online() == {"other"}
        say(fleet, "fleet", "claim", "--name", "lost")
        devices[0].stop()
        devices[0] = joined(fleet, lost, "lost")  # it joins again, and is not cut any more
        assert agent(lost)["state"] == "connected"
    finally:
        for device in devices:
            device.stop()
        fleet.close()


class OwnBroker:
    """mosquitto as `fedless broker config` sets it up."""

    def __init__(self, fleet: RunningFleet, folder: Path, port: int) -> None:
        self.out = folder / "etc"
        queues = folder / "queues"
        queues.mkdir()
        say(
            fleet, "broker", "config", self.out, "--port", str(port), "--address", "127.0.0.1",
            "--persistence", queues,
        )  # fmt: skip
        if os.geteuid() == 0:  # mosquitto then runs as its own user, who must be able to read all this
            account = pwd.getpwnam("mosquitto")
            for parent in (folder, *folder.parents[:-1]):
                if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                    parent.chmod(0o711)
            for path in (self.out, queues, *self.out.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["mosquitto", "-c", str(self.out / "mosquitto.conf")], stderr=subprocess.DEVNULL
        )

    def reload(self, revocation_list: bytes) -> None:
        assert self.process is not None
        (self.out / "crl.pem").write_bytes(revocation_list)
        self.process.send_signal(signal.SIGHUP)

    def running(self) -> bool:
        """It is started again if the signal ended it, as mosquitto 2.0.11 may and as Debian's unit does."""
        if self.process is not None and self.process.poll() is not None:
            self.start()
        return self.process is not None

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_own_broker_unreachable_at_the_start_then_there_then_told_late_of_a_revocation(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """The service says what is wrong and waits; a revoked device is cut, and out for good after the reload."""
    fleet = RunningFleet(tmp_path / "fleet", ports=Ports(free_port(), free_port(), 8883))
    port = free_port()
    broker = OwnBroker(fleet, tmp_path, port)
    device = None
    try:
        environment = {"FEDLESS__BROKER__KIND": "external"}
        fleet.start(**environment, FEDLESS__BROKER__ADDRESSES=f'["127.0.0.1:{port}"]')
        words = ("broker_unreachable", f"127.0.0.1:{port}", "The MQTT broker cannot be reached.")
        wait_until(lambda: all(word in fleet.log.read_text() for word in words), 60)
        assert "is mosquitto running" in fleet.log.read_text()
        broker.start()
        wait_until(lambda: "broker_connected" in fleet.log.read_text(), 90)
        device = joined(fleet, tmp_path / "lost", "lost")
        say(fleet, "fleet", "revoke", "lost")
        wait_until(lambda: "revoked_client_comes_back" in fleet.log.read_text(), 90)
        broker.reload((fleet.folder / "state" / "crl.pem").read_bytes())
        wait_until(lambda: broker.running() and "connection_cut" in fleet.log.read_text(), 150)
        wait_until(lambda: agent(tmp_path / "lost")["state"] == "disconnected", 60)
    finally:
        if device is not None:
            device.stop()
        fleet.close()
        broker.stop()
