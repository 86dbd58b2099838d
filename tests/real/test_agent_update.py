"""The agent is updated while it runs: a good version stays, one that fails is taken back. Real processes and broker."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edge_runtime.keystore import Keystore
from edge_runtime.status import agent as told
from edge_runtime.update import stage, standing
from fedless.protocol.errors import Code
from tests.agent_updates import agent
from tests.devices_fleet import command, enrolled, publisher, say
from tests.edge_device import CLIENT
from tests.edge_fleet import Fleet
from tests.edge_processes import Broker, Device, wait_until
from tests.running_fleet import RunningFleet

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]
SOON_S = 60.0


class Supervisor:
    """systemd's Restart=always: whatever ends is started again, at once."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.devices = [Device(state)]
        self._going = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._going:
            if self.devices[-1].process.poll() is not None and self._going:
                self.devices.append(Device(self.state))
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of what was started last; it may have ended."""
        return self.devices[-1].process.pid

    def runs(self, sequence: int) -> bool:
        """Whether the agent of this version (0: the system's) is connected."""
        try:
            command = " ".join(psutil.Process(self.pid).cmdline())
        except psutil.Error:
            return False
        ours = f"{self.state}/versions/"
        right = f"{ours}{sequence}/" in command if sequence else ours not in command
        return right and "edge_runtime.agent" in command and told(self.state).get("state") == "connected"

    def close(self) -> None:
        self._going = False
        self._thread.join(10)
        self.devices[-1].stop()


@pytest.fixture
def state(fleet: Fleet, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Path]:
    broker = Broker(tmp_path / "broker", fleet, free_port())
    broker.start()
    yield fleet.device(tmp_path / "state", CLIENT, 1, broker.port)
    broker.stop()


@pytest.fixture
def supervisor(state: Path) -> Iterator[Supervisor]:
    found = Supervisor(state)
    wait_until(lambda: found.runs(0), SOON_S)
    yield found
    found.close()


def push(supervisor: Supervisor, tmp_path: Path, sequence: int, spoil: Callable[[Path], None]) -> None:
    """As an order of the fleet does it: staged while the agent runs, which then starts again."""
    data = agent(tmp_path, sequence, spoil)
    stage(supervisor.state, io.BytesIO(data), Keystore(supervisor.state).load().publishers)
    os.kill(supervisor.pid, signal.SIGUSR1)


def test_a_good_version_takes_over_in_place_and_is_proved(supervisor: Supervisor, tmp_path: Path) -> None:
    pid = supervisor.pid
    push(supervisor, tmp_path, 1, lambda _: None)
    wait_until(lambda: supervisor.runs(1) and not standing(supervisor.state).trial, SOON_S)
    assert supervisor.pid == pid, "systemd sees one process"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: supervisor.pid != pid and supervisor.runs(1), SOON_S)
    assert not standing(supervisor.state).trial


def test_a_version_that_does_not_start_is_taken_back(supervisor: Supervisor, tmp_path: Path) -> None:
    def spoil(tree: Path) -> None:
        (tree / "edge_runtime" / "agent.py").write_text("raise SystemExit(3)\n")

    push(supervisor, tmp_path, 1, spoil)
    wait_until(lambda: standing(supervisor.state).given_up == 1 and supervisor.runs(0), SOON_S)
    assert len(supervisor.devices) >= 3, "it had its tries"


def test_a_version_that_never_reaches_the_broker_is_taken_back(state: Path, tmp_path: Path) -> None:
    """It starts, says that it is alive, and does nothing: only its alarm ends it."""
    with (state / "edge.toml").open("a") as file:
        file.write("[update]\ntrial_s = 2\n")
    supervisor = Supervisor(state)
    try:
        wait_until(lambda: supervisor.runs(0), SOON_S)
        push(supervisor, tmp_path, 1, _idle)
        wait_until(lambda: standing(state).given_up == 1 and supervisor.runs(0), SOON_S)
    finally:
        supervisor.close()


def _idle(tree: Path) -> None:
    path = tree / "edge_runtime" / "agent.py"
    path.write_text(path.read_text().replace("self._line.connect()", "return"))


def test_a_bad_version_gives_way_to_the_proved_update_before_it(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    def spoil(tree: Path) -> None:
        (tree / "edge_runtime" / "agent.py").write_text("def main():\n    return 1\n")

    push(supervisor, tmp_path, 1, lambda _: None)
    wait_until(lambda: supervisor.runs(1) and not standing(supervisor.state).trial, SOON_S)
    push(supervisor, tmp_path, 2, spoil)
    wait_until(lambda: standing(supervisor.state).given_up == 2 and supervisor.runs(1), SOON_S)
    assert (supervisor.state / "versions" / "1").is_dir()


def test_the_fleet_updates_an_agent_by_an_order(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "fleet")
    fleet.start()
    supervisor = Supervisor(enrolled(fleet, tmp_path / "state", CLIENT, ""))
    try:
        wait_until(lambda: supervisor.runs(0), SOON_S)
        file = tmp_path / "agent.update"
        file.write_bytes(agent(tmp_path, 3, key=publisher(fleet)))
        say(fleet, "fleet", "update", file, "--client", CLIENT)
        wait_until(lambda: supervisor.runs(3) and not standing(supervisor.state).trial, SOON_S)
        file.write_bytes(agent(tmp_path, 2, key=publisher(fleet)))
        done = command("fleet", "update", file, "--client", CLIENT, of=fleet)
        assert done.status == 1
        assert Code.BUNDLE_OLDER.value in done.stdout
        assert supervisor.runs(3)
    finally:
        supervisor.close()
        fleet.close()
