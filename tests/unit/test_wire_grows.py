"""The wire only grows: whatever a released version says, a newer one still understands, and says itself.

`tests/recordings/<version>.json` is the schema of a release: every service, method, message, field (number, type,
label) and enum value. A field that is renumbered, retyped or removed breaks devices in the field, and this test.
`make record` writes the file of the present version; it is committed with a release and never changed afterwards, as is
a conversation of its device with its fleet (`tests/recordings/conversations`), whose every message is still understood.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from fedless.protocol import wire
from tests.recordings import mqtt
from tests.recordings.messages import CONVERSATIONS, calls, data, load
from tests.recordings.schema import present

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("*.json"))


READERS: dict[str, Callable[[Any], object]] = {
    "EnrollRequest": wire.enroll_request_from_pb, "EnrollReply": wire.enrollment_from_pb,
    "DeviceStatus": wire.status_from_pb, "CheckInRequest": wire.check_in_from_pb,
    "CheckInReply": wire.check_in_reply_from_pb, "ReportHeader": wire.report_header_from_pb,
    "InvocationMetrics": wire.metrics_from_pb, "OrderReply": wire.order_reply_from_pb,
    "OrderResult": wire.order_result_from_pb,
}  # fmt: skip


def missing(old: Any, new: Any, path: str = "") -> list[str]:
    """What of the old schema the new one does not have."""
    if not isinstance(old, dict):
        return [] if old == new else [f"{path}: was {old}, is {new}"]
    if not isinstance(new, dict):
        return [f"{path}: is gone"]
    return [line for key, value in old.items() for line in missing(value, new.get(key), f"{path}/{key}")]


def test_each_recorded_version_has_its_schema_and_its_conversation() -> None:
    assert RECORDINGS
    assert [path.name for path in RECORDINGS] == [path.name for path in CONVERSATIONS], "make record"


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_released_schema_is_still_spoken(path: Path) -> None:
    assert missing(json.loads(path.read_text()), present()) == []


def test_renumbered_removed_and_retyped_fields_are_found() -> None:
    old = json.loads(RECORDINGS[0].read_text())
    for change in ({"number": 99}, {"type": "bool"}, {"label": "repeated"}):
        new = json.loads(RECORDINGS[0].read_text())
        new["messages"]["CheckInRequest"]["round_id"] |= change
        assert len(missing(old, new)) == 1
    del new["messages"]["CheckInRequest"]["nonce"]
    del new["services"]["Rounds"]["CheckIn"]
    assert len(missing(old, new)) == 3


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
def test_every_message_of_a_released_conversation_is_understood(path: Path) -> None:
    """By the service what devices said, by devices what the service said."""
    read = set()
    for _, sent, got in calls(load(path)):
        for message in (*sent, *got):
            name = message.DESCRIPTOR.name
            assert len(UnknownFieldSet(message)) == 0, name
            if name in READERS:
                READERS[name](message)
                read.add(name)
    assert read == set(READERS), "the conversation has every kind of message"


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
def test_wake_ups_of_a_released_conversation_are_understood(path: Path) -> None:
    events = [event for event in load(path)["events"] if event.get("mqtt") == "broker"]
    packets = [data(event["packet"]) for event in events]
    wakes = [mqtt.published(packet) for packet in packets if mqtt.kind(packet) == mqtt.PUBLISH]
    tickets = [wire.ticket_from_bytes(wire.signed_ticket_from_bytes(wake.payload).ticket) for wake in wakes]
    assert [ticket.kind.name for ticket in tickets] == ["TRAIN", "EVALUATE", "INVOKE", "INVOKE"]
