"""Functions on devices from afar, through real processes: service, broker, agent, participant, sandboxed instance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.founding import Ports
from edge_runtime.cli import main as edge
from fedless.protocol.errors import Code
from fedless.v1 import fleet_pb2
from tests.devices_fleet import command, enrolled, function, online, publisher, say
from tests.edge_processes import Device
from tests.running_fleet import Credentials, RunningFleet, refusal, wait_until

pytestmark = pytest.mark.real
CLIENT = "pi-1"
SETTINGS = '[data.readings]\nkind = "csv"\npath = "readings.csv"\n'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with RunningFleet(tmp_path_factory.mktemp("orders") / "fleet") as running:
        yield running


@pytest.fixture(scope="module")
def state(fleet: RunningFleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = enrolled(fleet, tmp_path_factory.mktemp("device") / "state", CLIENT, SETTINGS)
    (state / "readings.csv").write_text("a,b\n1,2\n3,4\n")
    return state


@pytest.fixture(scope="module")
def device(fleet: RunningFleet, state: Path) -> Iterator[Device]:
    device = online(fleet, Device(state), CLIENT)
    yield device
    device.stop()


def invoke(fleet: RunningFleet, name: str, event: str = "null", *more: str) -> dict[str, Any]:
    """The one device's answer."""
    done = command(
        "function", "invoke", name, "--client", CLIENT, "--event", event, "--json", *more, of=fleet
    )
    (answer,) = json.loads(done.stdout)
    assert done.status == (answer["outcome"] != "done"), done.stderr
    return dict(answer)


def test_a_pushed_function_is_called_on_a_device_and_answers(
    fleet: RunningFleet, device: Device, tmp_path: Path
) -> None:
    path = function(tmp_path / "adder.bundle", publisher(fleet), 1)
    assert "adder version 1 is pushed." in say(fleet, "function", "push", path)
    answer = invoke(fleet, "adder", "[1, 2, 40]")
    assert answer["answer"] == {"sum": 43, "version": 1}
    assert (answer["client"], answer["outcome"], answer["version"]) == (CLIENT, "done", 1)
    assert answer["start"] == "cold"
    assert answer["peak_rss_mb"] > 5
    assert answer["timings_ms"]["total"] > answer["timings_ms"]["run"] > 0
    assert invoke(fleet, "adder")["answer"]["sum"] == 0
    shown = say(fleet, "function", "list")
    assert [line.split()[:5] for line in shown.splitlines() if "adder" in line] == [
        ["adder", "1", "serves", "1", "0"]
    ]
    assert "invoke" in say(fleet, "function", "result")
    assert "pushed" in say(fleet, "function", "push", path), "a repeat is harmless"


def test_bundle_of_an_unknown_publisher_and_an_older_one_are_not_pushed(
    fleet: RunningFleet, tmp_path: Path
) -> None:
    foreign = function(tmp_path / "foreign.bundle", bytes(range(32)), 9, name="foreign")
    done = command("function", "push", foreign, of=fleet)
    assert done.status == 1
    assert Code.BUNDLE_PUBLISHER.sentence in done.stderr
    say(fleet, "function", "push", function(tmp_path / "b", publisher(fleet), 2, name="aged"))
    done = command("function", "push", function(tmp_path / "a", publisher(fleet), 1, name="aged"), of=fleet)
    assert Code.BUNDLE_OLDER.sentence in done.stderr
    other = function(tmp_path / "c", publisher(fleet), 2, "    return 0\n", name="aged")
    done = command("function", "push", other, of=fleet)
    assert Code.CONFLICTING_REPEAT.sentence in done.stderr


def test_device_refuses_a_version_older_than_one_it_has_seen(
    fleet: RunningFleet, state: Path, device: Device, tmp_path: Path
) -> None:
    newer = function(tmp_path / "newer", publisher(fleet), 5, name="seen")
    assert edge(["functions", "install", "--state", str(state), str(newer)]) == 0
    say(fleet, "function", "push", function(tmp_path / "older", publisher(fleet), 4, name="seen"))
    answer = invoke(fleet, "seen")
    assert answer["outcome"] == Code.BUNDLE_OLDER.value
    assert "version 5 was already seen" in answer["detail"]


def test_a_version_that_fails_is_given_up_by_the_device_itself(
    fleet: RunningFleet, device: Device, tmp_path: Path
) -> None:
    key, name = publisher(fleet), "fickle"
    say(fleet, "function", "push", function(tmp_path / "1", key, 1, name=name), "--client", CLIENT)
    say(
        fleet,
        "function",
        "push",
        function(tmp_path / "2", key, 2, "    raise ValueError(event)\n", name=name),
    )
    for _ in range(3):
        answer = invoke(fleet, name, '"no"')
        assert answer["outcome"] == Code.INSTANCE_FAILED.value
        assert "ValueError: no" in answer["detail"]
    assert invoke(fleet, name, "[5]")["answer"] == {"sum": 5, "version": 1}
    lines = [line.split()[:5] for line in say(fleet, "function", "list").splitlines() if name in line]
    assert lines == [[name, "2", "serves", "1", "1"], [name, "1", "kept", "1", "0"]]
    assert "fickle version 1 serves." in say(fleet, "function", "rollback", name)
    assert invoke(fleet, name, "[6]")["answer"] == {"sum": 6, "version": 1}


def test_rollback_from_afar_reaches_the_device(fleet: RunningFleet, device: Device, tmp_path: Path) -> None:
    key, name = publisher(fleet), "regretted"
    for version in (1, 2):
        path = function(tmp_path / str(version), key, version, name=name)
        say(fleet, "function", "push", path, "--client", CLIENT)
    assert invoke(fleet, name)["version"] == 2
    assert "done" in say(fleet, "function", "rollback", name, "--client", CLIENT)
    assert invoke(fleet, name)["version"] == 1


def test_function_that_reads_data_answers_only_where_the_owner_allows_it(
    fleet: RunningFleet, state: Path, device: Device, tmp_path: Path
) -> None:
    body = "    return open(context.data['readings']).read()\n"
    path = function(tmp_path / "r", publisher(fleet), 1, body, name="reader", mounts=["readings"])
    say(fleet, "function", "push", path)
    refused = invoke(fleet, "reader")
    assert refused["outcome"] == Code.POLICY.value
    assert "leave in the clear" in refused["detail"]
    assert refused["answer"] is None
    assert edge(["policy", "--state", str(state), "modes=plain,pairwise,helper"]) == 0
    assert invoke(fleet, "reader")["answer"].startswith("a,b\n")


def test_who_is_not_meant_gets_nothing(fleet: RunningFleet, device: Device, tmp_path: Path) -> None:
    """Another device, an operator, a wrong nonce; and an order to nobody."""
    say(fleet, "function", "push", function(tmp_path / "s", publisher(fleet), 1, name="secret"))
    invoke(fleet, "secret", '"for pi-1"')
    with fleet.operator() as operator:
        order_id = operator.orders()[0].order_id
    query = fleet_pb2.OrderQuery(order_id=order_id, nonce=bytes(16))
    result = fleet_pb2.OrderResult(order_id=order_id, nonce=bytes(16), outcome="done")
    with fleet.calls(fleet.device("nosy")) as calls:
        assert refusal(lambda: calls.fleet.GetOrder(query)).code is Code.NOT_IN_COHORT
        assert refusal(lambda: calls.fleet.PutOrderResult(result)).code is Code.NOT_IN_COHORT
    with fleet.calls(Credentials.read(fleet.folder / "operator")) as calls:
        assert refusal(lambda: calls.fleet.GetOrder(query)).code is Code.WRONG_ROLE
    for whom, says in (
        (["--client", "nobody"], "Found no enrolled device 'nobody'"),
        (["--label", "site=mars"], "Expected 1 to 10000 devices, found 0"),
        ([], "nobody is named"),
    ):
        done = command("function", "invoke", "secret", *whom, of=fleet)
        assert done.status == 1
        assert says in done.stderr


def test_order_waits_for_a_device_that_was_never_seen_over_a_restart_of_the_service(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    fleet = RunningFleet(tmp_path / "fleet", ports=Ports(free_port(), free_port(), free_port()))
    fleet.start()
    state = enrolled(fleet, tmp_path / "state", CLIENT)
    try:
        path = function(tmp_path / "adder.bundle", publisher(fleet), 1)
        say(fleet, "function", "push", path, "--client", CLIENT, "--no-wait")
        assert fleet.stop() == 0
        fleet.start()
        device = Device(state)
        try:
            with fleet.operator() as operator:
                wait_until(lambda: operator.orders()[0].settled == 1, 90)
                (answer,) = operator.order(operator.orders()[0].order_id).answers
            assert (answer.outcome, answer.version) == ("done", 1)
        finally:
            device.stop()
    finally:
        fleet.close()
