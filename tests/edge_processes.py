"""Real processes around the edge runtime's tests: a broker with mTLS, the aggregator's caller on it, a device."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.wake import _Context
from fedless.protocol import identity
from tests.edge_device import CLIENT
from tests.edge_fleet import Fleet

ROOT = Path(__file__).parents[1]
STATUS = f"fedless/v1/testing/status/{CLIENT}"
WAKE = f"fedless/v1/testing/wake/{CLIENT}"


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Ends mosquitto, which forgets a SIGTERM that comes between its start and its main loop: ask again."""
    until = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < until, "the process does not end"
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)


def below() -> list[psutil.Process]:
    """What runs below this process, without the database server that its tests share, whose children come and go."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() != "postgres":
                found.append(process)
    return found


def show(figures: dict[str, object]) -> None:
    """For people who run this with -s."""
    sys.stdout.write(f"{figures}\n")


class Broker:
    """mosquitto on a loopback port with the fleet's certificates."""

    def __init__(self, folder: Path, fleet: Fleet, port: int) -> None:
        self.port = port
        self.folder = folder
        folder.mkdir()
        key, chain = fleet.authority.pair(identity.Role.BROKER, "main")
        for name, data in (("key.pem", key), ("cert.pem", chain), ("ca.pem", fleet.authority.pem)):
            (folder / name).write_bytes(data)
        lines = [
            "per_listener_settings false", "allow_anonymous false", f"listener {port} 127.0.0.1",
            f"cafile {folder}/ca.pem", f"certfile {folder}/cert.pem", f"keyfile {folder}/key.pem",
            "require_certificate true", "use_identity_as_username true", "persistence true",
            f"persistence_location {folder}/", "log_dest stderr", "user root", "max_queued_messages 1000",
        ]  # fmt: skip
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["mosquitto", "-c", str(self.folder / "mosquitto.conf")], stderr=log
            )

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process = None


class Caller:
    """The aggregator's side of the broker: publishes wake-ups, sees presence."""

    def __init__(self, folder: Path, fleet: Fleet, port: int) -> None:
        key, chain = fleet.authority.pair(identity.Role.AGGREGATOR, "main")
        (folder / "caller.key").write_bytes(key)
        (folder / "caller.pem").write_bytes(chain)
        (folder / "ca.pem").write_bytes(fleet.authority.pem)
        context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.fleet_name = identity.server_name(fleet.name)
        context.load_verify_locations(folder / "ca.pem")
        context.load_cert_chain(folder / "caller.pem", folder / "caller.key")
        self.presence: list[object] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "@aggregator", protocol=mqtt.MQTTv5)
        self.client.tls_set_context(context)
        self.client.on_message = lambda *a: self.presence.append(json.loads(a[2].payload)["online"])
        self.client.on_connect = self._connected
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()

    def _connected(self, *_: Any) -> None:
        self.client.subscribe(STATUS, qos=1)

    def wake(self, data: bytes, expiry_s: int = 60) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
        properties.MessageExpiryInterval = expiry_s
        self.client.publish(WAKE, data, qos=1, properties=properties).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Device:
    """`fedless-edge run` as a process."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.log = state / "agent.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_runtime.cli", "run", "--state", str(state)],
                cwd=ROOT, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def told(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)
