"""`fedless fleet show|rename|label|remove` on a running service; names and labels choose devices elsewhere, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedless.console.link import open_link
from fedless.protocol.errors import Code, PeerError
from fedless.v1 import fleet_pb2, operator_pb2
from tests.devices_fleet import command, say
from tests.running_fleet import Credentials, RunningFleet, refusal

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with RunningFleet(tmp_path_factory.mktemp("commands") / "fleet") as running:
        yield running


def test_one_client_is_shown_renamed_labelled_and_removed(fleet: RunningFleet, tmp_path: Path) -> None:
    who = fleet.device("pi-1")
    status = fleet_pb2.DeviceStatus(
        runtime_version="0.1", cores=4, not_before_ms=5, not_before_reason="it is hot"
    )
    with fleet.calls(who) as calls:
        calls.fleet.ReportStatus(status)
    assert say(fleet, "fleet", "rename", "pi-1", "attic") == "pi-1 is called attic.\n"
    assert say(fleet, "fleet", "label", "attic", "site=north", "gpu=no") == "gpu=no, site=north\n"
    assert say(fleet, "fleet", "label", "pi-1", "gpu-") == "site=north\n"
    shown = json.loads(say(fleet, "fleet", "show", "attic", "--json"))
    assert (shown["id"], shown["name"], shown["kind"], shown["state"]) == (
        "pi-1",
        "attic",
        "device",
        "enrolled",
    )
    assert (shown["labels"], shown["status"]["cores"]) == ({"site": "north"}, 4)
    assert shown["not_before"].endswith("it is hot")
    assert len(shown["certificates"]) == 1
    told = say(fleet, "fleet", "show", "pi-1")
    lines = told.splitlines()
    assert {"name          attic", "labels        site=north", "runs          0.1", "processors    4"} <= {
        *lines
    }
    assert "{" not in told, "no JSON for people"
    (line,) = [line.split() for line in say(fleet, "fleet", "list").splitlines() if "pi-1" in line]
    assert line[:4] == ["pi-1", "attic", "enrolled", "no"]
    given = say(fleet, "function", "result")
    assert given == ""
    assert command("fleet", "remove", "nobody", "--yes", of=fleet).status == 1
    assert say(fleet, "fleet", "remove", "attic", "--yes") == "pi-1 is removed.\n"
    assert "pi-1" not in say(fleet, "fleet", "list")
    with fleet.calls(who) as calls:
        refused = refusal(lambda: calls.fleet.ReportStatus(status))
    assert refused.code is Code.CERTIFICATE_REVOKED


def test_mistakes_are_told(fleet: RunningFleet) -> None:
    fleet.device("pi-2")
    for words, says in (
        (("show", "nobody"), "Found no 'nobody'"),
        (("label", "pi-2", "site"), "Expected --label key=value"),
        (("rename", "pi-2", "x" * 65), "at most 64 printable"),
        (("remove", "pi-2"), "Aborted"),
    ):
        done = command("fleet", *words, of=fleet)
        assert done.status == 1, words
        assert says in done.stderr, done


def test_leaked_operator_is_replaced_and_refused(fleet: RunningFleet) -> None:
    """The folder's own certificate leaked: a new one is made, and the old one is refused with the next call."""
    leaked = Credentials.read(fleet.folder / "operator")
    with fleet.calls(leaked) as thief:
        thief.operator.Info(operator_pb2.InfoRequest())
        listed = say(fleet, "operator", "list").splitlines()
        (line,) = [line.split() for line in listed if "(you)" in line]
        old = line[0]
        refused = command("operator", "revoke", old, of=fleet)
        assert "fedless operator renew" in refused.stderr
        assert f"fedless operator revoke {old}" in say(fleet, "operator", "renew")
        assert say(fleet, "operator", "revoke", old, "--reason", "leaked") == f"{old} is revoked.\n"
        met = refusal(lambda: thief.operator.Info(operator_pb2.InfoRequest()))
        assert met.code is Code.CERTIFICATE_REVOKED
    states = [line.split()[1:3] for line in say(fleet, "operator", "list").splitlines()[1:]]
    assert sorted(states) == [["main", "(you)"], ["main", "revoked"]]


def test_second_operator_commands_the_fleet_until_he_is_revoked(fleet: RunningFleet) -> None:
    anna = fleet.folder / "anna"
    assert "Hand it over" in say(fleet, "operator", "add", "anna", "--out", anna)
    assert "anna" in say(fleet, "operator", "list"), "before she has called"
    with open_link(anna) as operator:
        assert operator.info().fleet == "home"
        say(fleet, "operator", "revoke", "--certificate", anna / "cert.pem")
        with pytest.raises(PeerError) as caught:
            operator.info()
    assert caught.value.code is Code.CERTIFICATE_REVOKED
    assert command("operator", "add", "anna", "--out", anna, of=fleet).status == 1
    assert "Found no operator" in command("operator", "revoke", "nobody", of=fleet).stderr
    assert "--certificate" in command("operator", "revoke", of=fleet).stderr
