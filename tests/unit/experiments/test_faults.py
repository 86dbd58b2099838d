"""A dropout names a client by its number in the file, whatever kinds of clients come before it."""

from __future__ import annotations

from pathlib import Path

from fedless.experiments.config import Dropout
from fedless.experiments.faults import Dropouts
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.groups import ClientGroup
from fedless.experiments.operator import Operator


def unused(_: Path) -> Operator:
    raise AssertionError("nothing is started")


def test_functions_before_a_device_do_not_shift_its_number(tmp_path: Path) -> None:
    function = ClientGroup("knative", 1)
    clients = [Device("knative-1", b"", group=function), Device("edge-2", b""), Device("edge-3", b"")]
    fleet = LocalFleet(tmp_path, clients, unused)
    assert [one.client_id for one in fleet.devices] == ["edge-2", "edge-3"]
    faults = Dropouts(fleet, [Dropout(client=2, round=1)], lambda _: 1, lambda _: None)
    assert faults._clients == {"edge-2"}
