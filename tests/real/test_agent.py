"""The agent as a real process on a real mosquitto with mTLS: wake-ups, redelivery, a lost broker, drain, its weight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime.status import collect
from tests.edge_device import CLIENT
from tests.edge_fleet import FakeAggregator, Fleet, RoundHere, wake_bytes
from tests.edge_processes import ROOT, Broker, Caller, Device, show, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]


def done(aggregator: FakeAggregator, here: RoundHere, rounds: int) -> bool:
    return here.accepted == 1 and len(aggregator.metrics) == rounds


def about(state: Path, name: str) -> dict[str, Any]:
    """One part of what `fedless-edge status` tells."""
    found = collect(state)[name]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def broker(fleet: Fleet, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker", fleet, free_port())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def state(fleet: Fleet, aggregator: FakeAggregator, broker: Broker, tmp_path: Path) -> Path:
    return fleet.device(tmp_path / "state", CLIENT, aggregator.port, broker.port)


@pytest.fixture
def caller(fleet: Fleet, broker: Broker, tmp_path: Path) -> Iterator[Caller]:
    folder = tmp_path / "caller"
    folder.mkdir()
    caller = Caller(folder, fleet, broker.port)
    yield caller
    caller.close()


@pytest.fixture
def device(state: Path) -> Iterator[Device]:
    device = Device(state)
    yield device
    device.stop()


def test_wake_up_to_report(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, device: Device, state: Path
) -> None:
    wait_until(lambda: caller.presence == [True])
    for round_id in (1, 2):
        task = fleet.task()
        ticket = fleet.ticket(CLIENT, round_id, task)
        here = aggregator.open(ticket, task)
        caller.wake(wake_bytes(ticket))
        wait_until(partial(done, aggregator, here, round_id))
        show({name: round(value) for name, value in aggregator.metrics[-1].timings_ms.items()})
    assert aggregator.metrics[0].agent_rss_mb > 5
    assert device.stop() == 0
    wait_until(lambda: caller.presence[-1] is False)
    assert about(state, "agent") == {
        "running": False,
        "state": "stopped",
        "at_ms": about(state, "agent")["at_ms"],
    }


def test_a_participant_that_stays_is_warm_and_leaves_after_its_time(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, state: Path
) -> None:
    with (state / "edge.toml").open("a") as file:
        file.write("[warm]\nmemory_mb = 1000\nkeep_s = 2\n")
    device = Device(state)
    try:
        wait_until(lambda: caller.presence == [True])
        for round_id in (1, 2, 3):
            task = fleet.task()
            ticket = fleet.ticket(CLIENT, round_id, task)
            here = aggregator.open(ticket, task)
            caller.wake(wake_bytes(ticket))
            wait_until(partial(done, aggregator, here, round_id))
            show({name: round(value) for name, value in aggregator.metrics[-1].timings_ms.items()})
            time.sleep(
                0.5
            )  # until it has said that it is idle; a wake-up before that would only wait a little
        assert [metrics.start for metrics in aggregator.metrics] == ["cold", "warm", "warm"]
        processes = psutil.Process(device.process.pid)
        wait_until(lambda: not processes.children(recursive=True), 10)
        task = fleet.task()
        ticket = fleet.ticket(CLIENT, 4, task)
        aggregator.open(ticket, task)
        caller.wake(wake_bytes(ticket))
        wait_until(lambda: len(aggregator.metrics) == 4)
        assert aggregator.metrics[-1].start == "cold"
    finally:
        assert device.stop() == 0
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(state) in " ".join(p.info["cmdline"] or [])
    ]


def test_sleeping_device_gets_the_wake_up_when_it_comes_back(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, device: Device, state: Path
) -> None:
    wait_until(lambda: caller.presence == [True])
    device.stop()
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    caller.wake(wake_bytes(ticket))
    again = Device(state)
    try:
        wait_until(lambda: here.accepted == 1)
    finally:
        again.stop()


def test_killed_agent_gets_the_wake_up_again_and_one_report_is_made(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, device: Device, state: Path
) -> None:
    """SIGKILL of agent and participant before the wake-up was acknowledged or at any later moment."""
    wait_until(lambda: caller.presence == [True])
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    caller.wake(wake_bytes(ticket))
    wait_until(lambda: "event=accepted" in device.told or here.accepted)
    device.process.kill()
    device.process.wait()
    again = Device(state)
    try:
        wait_until(lambda: here.accepted and about(state, "counters").get("reported") == 1, 40)
    finally:
        again.stop()
    assert here.accepted == 1


def test_broker_absent_at_start_and_lost_in_the_middle(
    fleet: Fleet, aggregator: FakeAggregator, broker: Broker, state: Path
) -> None:
    broker.stop()
    device = Device(state)
    try:
        wait_until(lambda: "event=disconnected" in device.told)
        wait_until(lambda: about(state, "agent").get("state") == "disconnected")
        broker.start()
        wait_until(lambda: about(state, "agent").get("state") == "connected")
        broker.stop()
        wait_until(lambda: device.told.count("event=disconnected") >= 2)
        broker.start()
        wait_until(lambda: device.told.count("event=connected") == 2)
    finally:
        device.stop()
    assert device.told.count("event=disconnected") <= 4, "said once for each change, not for each attempt"


def test_second_agent_on_one_state_directory_is_refused(device: Device, caller: Caller, state: Path) -> None:
    wait_until(lambda: caller.presence == [True])
    second = subprocess.run(
        [sys.executable, "-m", "edge_runtime.cli", "run", "--state", str(state)],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stderr.startswith("fedless-edge: Another process is using this state directory.")
    assert second.stderr.count("\n") == 1


def test_flood_of_forged_wake_ups_is_bounded_and_counted(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, state: Path
) -> None:
    with (state / "edge.toml").open("a") as file:
        file.write("[agent]\nwakes_per_minute = 5\nqueue = 2\n")
    began, device = time.monotonic(), Device(state)
    try:
        wait_until(lambda: caller.presence == [True])
        for number in range(12):
            caller.wake(b"\xff" * 20 + bytes([number]))
        wait_until(lambda: about(state, "counters").get("ticket_malformed", 0) >= 5, 45)
        time.sleep(2)
        counted = about(state, "counters")["ticket_malformed"]
        assert counted <= 5 + (time.monotonic() - began) / 12, (
            "five at once, and one more every twelve seconds"
        )
        assert len(list(Path(f"/proc/{device.process.pid}/task/{device.process.pid}").glob("children"))) <= 1
    finally:
        device.stop()


def test_sigterm_lets_the_participant_finish(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, device: Device
) -> None:
    wait_until(lambda: caller.presence == [True])
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    caller.wake(wake_bytes(ticket))
    wait_until(lambda: "check_in" in aggregator.calls)
    assert device.stop() == 0
    assert here.accepted == 1


def test_sigterm_ends_a_participant_that_does_not_finish(
    fleet: Fleet, aggregator: FakeAggregator, caller: Caller, state: Path
) -> None:
    with (state / "edge.toml").open("a") as file:
        file.write("[agent]\ndrain_s = 1\n")
    device = Device(state)
    try:
        wait_until(lambda: caller.presence == [True])
        task = fleet.task()
        ticket = fleet.ticket(CLIENT, 1, task)
        here = aggregator.open(ticket, task)
        aggregator.before = lambda call: time.sleep(25) if call == "check_in" else None
        caller.wake(wake_bytes(ticket))
        wait_until(lambda: "check_in" in aggregator.calls)
        begun = time.monotonic()
        assert device.stop() == 0
        assert time.monotonic() - begun < 22
        assert "event=participant_stopped" in device.told
        assert here.accepted == 0
    finally:
        device.stop()


def test_idle_agent_is_small_and_imports_only_what_idling_needs(device: Device, caller: Caller) -> None:
    wait_until(lambda: caller.presence == [True])
    time.sleep(0.5)
    pid = device.process.pid
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup[1:]}
    show({"idle agent, MB": {name: round(sizes[name], 1) for name in ("Rss", "Pss", "Private_Dirty")}})
    mapped = Path(f"/proc/{pid}/maps").read_text()
    for library in ("numpy", "grpc", "google", "cryptography", "_sqlite3", "litert"):
        assert library not in mapped, f"the idle agent has loaded {library}"
    assert sizes["Pss"] <= 25


def test_idle_agent_does_not_wake_up(device: Device, caller: Caller) -> None:
    wait_until(lambda: caller.presence == [True])
    wait_until(lambda: "starting" not in (device.state / "agent.json").read_text())
    time.sleep(1.5)  # the first resumption has ended by then

    def switches() -> int:
        status = Path(f"/proc/{device.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    before = switches()
    time.sleep(5)
    assert switches() - before <= 2


def test_silence_does_not_cost_the_connection(state: Path, broker: Broker, caller: Caller) -> None:
    """With a keepalive of 2 s the broker would give the agent up after 3 s without a ping."""
    code = "import sys; from edge_runtime.agent import main; sys.exit(main())"
    options = ["--keepalive", "2", "--reconnect", "1", "--rate", "30", "--queue", "8", "--drain", "1"]
    command = [sys.executable, "-c", code, "--state", str(state), *options, "--", sys.executable, "-c", ""]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: caller.presence == [True])
            time.sleep(6)
        finally:
            process.terminate()
        _, told = process.communicate(timeout=20)
    assert told.count("event=connected") == 1
    assert "event=disconnected" not in told


def test_modules_of_the_agent() -> None:
    """What importing the agent loads, in a fresh interpreter: no dear library, nothing of the protocol."""
    code = "import sys; sys.path[:0] = sys.argv[1].split(':'); import edge_runtime.agent; print(' '.join(sys.modules))"
    paths = ":".join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, paths],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout.split()
    ours = {name for name in found if name.startswith(("edge_runtime", "fedless"))}
    parts = (
        "agent",
        "disk",
        "doorway",
        "handover",
        "lifetime",
        "log",
        "notify",
        "proving",
        "timetable",
        "wake",
    )
    assert ours == {"edge_runtime", *(f"edge_runtime.{part}" for part in parts)}
    dear = {
        "numpy",
        "grpc",
        "google",
        "cryptography",
        "sqlite3",
        "dataclasses",
        "inspect",
        "asyncio",
        "tomllib",
    }
    assert dear & set(found) == set()
