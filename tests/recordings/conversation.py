"""Records what a device and a fleet of this version say to each other: `python -m tests.recordings.conversation FILE`.

A device joins, is woken for a round, trains, reports, judges the new model, answers a call of a function, renews its
certificate and leaves. Every gRPC message and MQTT packet is kept as it was on the wire, in order, with what the
operator did in between, and the device's key: fleet and device exist only for this recording, and are gone after it.
`make record` writes it with a release. tests/real/test_recorded_conversations.py replays the device's side.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.founding import Ports
from fedless import __version__
from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console.link import GiveOrderRequest, Link, Selection
from fedless.protocol.errors import FedlessError
from tests.devices_fleet import enrolled, function, online, publisher
from tests.edge_processes import Device
from tests.recordings.relay import INSIDE, Relay, Tape, text
from tests.running_fleet import RunningFleet, wait_until

TINY = Path(__file__).parent / "tiny"
FLEET, CLIENT, EXAMPLES = "recorded", "device-1", 24
SETTINGS = '[data.default]\npath = "examples.npz"\n'
TASK = """\
name = "recorded"
function = "tiny"
mode = "plain"
rounds = 1

[cohort]
size = 1

[client]
learning_rate = 0.5
holdout = 0.25

[evaluation]
devices = 1
central_every = 0
"""
WAIT_S, QUIET_S = 90.0, 3.0


def settings() -> dict[str, str]:
    """The environment of a service that is recorded or replayed."""
    return {"FEDLESS__LISTEN__ADDRESS": INSIDE, "FEDLESS__POLICY__MODES": '["plain"]'}


# -- what the operator does; a replay does it again, with today's commands


def start_run(fleet: RunningFleet, operator: Link) -> str:
    """A run of one round; its id."""
    bundle = pack_and_sign(TINY, fleet.folder / "publisher" / "publisher.key")
    return operator.start_run(TASK, operator.put(bundle), operator.put(initial_weights(TINY)), b"").run_id


def invoke(fleet: RunningFleet, operator: Link) -> str:
    """A call of a function on the device; the order's id."""
    bundle = function(fleet.folder / "adder.bundle", publisher(fleet), 1).read_bytes()
    operator.push_function(operator.put(bundle))
    return _order(operator, action="invoke", function="adder", event=b"[1, 2, 39]")


def renew(_: RunningFleet, operator: Link) -> str:
    """An order to renew; its id."""
    return _order(operator, action="renew")


def _order(operator: Link, **what: Any) -> str:
    request = GiveOrderRequest(
        request_id=os.urandom(16), selection=Selection(client_ids=[CLIENT]), valid_ms=600_000, **what
    )
    return str(operator.give_order(request).order_id)


def run_ended(operator: Link, run_id: str) -> bool:
    return operator.run(run_id).state == "finished"


def answered(operator: Link, order_id: str) -> bool:
    return [each.outcome for each in operator.order(int(order_id)).answers] == ["done"]


Act = Callable[[RunningFleet, Link], str]
Ended = Callable[[Link, str], bool]
ACTS: dict[str, tuple[Act, Ended]] = {
    "start_run": (start_run, run_ended),
    "invoke": (invoke, answered),
    "renew": (renew, answered),
}


# -- the recording


def record(folder: Path) -> dict[str, Any]:
    """One conversation, in an empty folder."""
    numbers = tuple(_free_port() for _ in range(3))
    fleet = RunningFleet(folder / "fleet", FLEET, Ports(*numbers))
    state = folder / "state"
    relay = Relay(fleet, state, (numbers[0], numbers[1], numbers[2]))
    fleet.start(**settings())
    try:
        relay.start()
        try:
            _live(fleet, state, relay)
        finally:
            relay.stop()
    finally:
        fleet.close()
    key = (state / "identity" / "key.pem").read_bytes()
    return {
        "version": __version__, "fleet": FLEET, "client": CLIENT, "key_pem": text(key), "events": relay.tape.events,
    }  # fmt: skip


def _live(fleet: RunningFleet, state: Path, relay: Relay) -> None:
    enrolled(fleet, state, CLIENT, SETTINGS)
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, EXAMPLES, np.int32)
    np.savez(state / "examples.npz", x=random.random((EXAMPLES, 4), np.float32), y=labels)
    device = Device(state)
    try:
        online(fleet, device, CLIENT)
        with fleet.operator() as operator:
            for name, (act, ended) in ACTS.items():
                relay.tape.add(operator=name)
                done = act(fleet, operator)
                wait_until(lambda ended=ended, done=done: ended(operator, done), WAIT_S)  # type: ignore[misc]
                _rest(relay.tape)
    finally:
        device.stop()


def _rest(tape: Tape) -> None:
    """Until no call is under way and nobody has said anything for a while."""
    before = -1
    while before < (before := len(tape.events)) or not all(event.get("got", [""]) for event in tape.events):
        time.sleep(QUIET_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = record(Path(folder))
        except FedlessError as error:
            sys.exit(str(error))
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
    calls = [event["call"].rpartition("/")[2] for event in found["events"] if "call" in event]
    sys.stdout.write(f"{len(found['events'])} events; {', '.join(calls)}\n")


if __name__ == "__main__":
    main()
