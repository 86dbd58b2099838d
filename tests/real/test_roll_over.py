"""A fleet replaces its ticket key and its authority while its service runs, one and the same process to the end.

One device is there all the time, one is away until the end.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.authorities import Authorities, Phase, mark
from aggregator.founding import Ports
from edge_runtime.keystore import Identity, Keystore
from tests.devices_fleet import command, enrolled, function, online, publisher, say
from tests.edge_processes import Device
from tests.running_fleet import RunningFleet, wait_until

pytestmark = pytest.mark.real
SETTINGS = "[agent]\nreconnect_max_s = 1\n"
BOUND_S = 120.0


@pytest.mark.skipif(
    not os.environ.get("FEDLESS_ROLL_OVER"), reason="minutes of real processes: `make test-roll-over`"
)
@pytest.mark.timeout(600)
def test_fleet_rolls_over_with_one_device_there_and_one_away(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    fleet = RunningFleet(tmp_path / "fleet", ports=Ports(free_port(), free_port(), free_port()))
    fleet.start()
    assert fleet.process is not None
    states = {name: enrolled(fleet, tmp_path / name, name, SETTINGS) for name in ("pi-1", "pi-2")}
    first = {name: Keystore(state).load() for name, state in states.items()}
    devices, process = [Device(states["pi-1"])], fleet.process
    try:
        online(fleet, devices[0], "pi-1")

        assert "cross-trust" in step(fleet, "authority", "roll-over")
        step(fleet, "rotate-keys", "ticket")
        new = now(fleet).believed[1]
        wait_until(lambda: len(known(states["pi-1"]).authorities) == 2, BOUND_S)
        wait_until(lambda: "pi-1 lacks" not in say(fleet, "fleet", "list"), BOUND_S)
        for more in (("authority", "roll-over"), ("rotate-keys", "ticket", "--end")):
            refused = command("fleet", *more, of=fleet)
            assert refused.status == 1
            assert "pi-2" in refused.stderr
            assert "pi-1" not in refused.stderr

        assert "issuing" in step(fleet, "authority", "roll-over", "--force")
        step(fleet, "rotate-keys", "ticket", "--end", "--force")
        wait_until(lambda: known(states["pi-1"]).issued_by == mark(new), BOUND_S)
        devices.append(Device(states["pi-2"]))  # it knows neither the authority nor the key that wakes it
        wait_until(lambda: known(states["pi-2"]).issued_by == mark(new), BOUND_S)
        wait_until(lambda: "lacks" not in say(fleet, "fleet", "list"), BOUND_S)

        assert "settled" in step(fleet, "authority", "roll-over")
        assert now(fleet).phase is Phase.SETTLED
        for name, device in zip(states, devices, strict=True):
            online(fleet, device, name)
        bundle = function(tmp_path / "adder.bundle", publisher(fleet), 1)
        assert say(fleet, "function", "push", bundle, "--all", "--valid", "10m").count("done") == 2
        assert say(fleet, "fleet", "renew", "--all", "--valid", "10m").count("done") == 2
        for name, state in states.items():
            found = known(state)
            assert found.authorities == (new.der,)
            assert [key.key_id for key in found.ticket_keys] != [
                key.key_id for key in first[name].ticket_keys
            ]
            assert len(found.ticket_keys) == 1
            assert found.publisher_keys == first[name].publisher_keys
            assert found.policy == first[name].policy
            assert found.key_pem == first[name].key_pem
        late = enrolled(fleet, tmp_path / "pi-3", "pi-3", SETTINGS)
        assert known(late).authorities == (new.der,)
        assert known(late).trust_numbers == known(states["pi-1"]).trust_numbers
        hung_up = fleet.log.read_text().count("nothing_to_take_up")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: fleet.log.read_text().count("nothing_to_take_up") > hung_up)
        assert process.poll() is None, "it was never started again"
    finally:
        for device in devices:
            device.stop()
        fleet.close()


def step(fleet: RunningFleet, *arguments: str) -> str:
    """A step in the fleet's folder, which the running service takes up before the command ends."""
    said = say(fleet, "fleet", *arguments)
    assert "The running aggregator has taken it up: " in said
    return said


def now(fleet: RunningFleet) -> Authorities:
    return Authorities.load(fleet.folder / "authority", fleet.name)


def known(state: Path) -> Identity:
    return Keystore(state).load()


def test_show_tells_phase_and_who_is_behind(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "fleet")
    assert "settled" in say(fleet, "fleet", "authority", "show")
    assert "has not been told" in say(fleet, "fleet", "authority", "roll-over")
    told = say(fleet, "fleet", "authority", "show")
    assert "cross-trust" in told
    assert told.count("authority  ") == 2
    assert json.loads((fleet.folder / "authority" / "rollover.json").read_text())["phase"] == "cross-trust"
