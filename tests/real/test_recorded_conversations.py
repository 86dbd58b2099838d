"""A device of each released version meets today's service: its recorded bytes, over real TLS, gRPC and MQTT.

Only what belongs to one fleet is exchanged: ids, nonces, digests of bundles, the claim's secret. See
tests/recordings/conversation.py for what was recorded, and for how.
"""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from aggregator.founding import Ports
from fedless.console.link import Link
from fedless.protocol import identity, wire
from fedless.protocol.claim import parse_claim
from fedless.protocol.messages import Ticket
from fedless.v1 import enrollment_pb2
from tests.production_broker import free_port
from tests.recordings import mqtt
from tests.recordings.conversation import ACTS, settings
from tests.recordings.messages import CONVERSATIONS, classes, data, load, lost, replaced
from tests.recordings.relay import INSIDE, call, connected, exactly
from tests.running_fleet import RunningFleet, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]
WAIT_S = 60.0


class Replay:
    """Says what the device said, and compares what it hears."""

    def __init__(self, said: dict[str, Any], fleet: RunningFleet, state: Path, ports: Ports) -> None:
        self.said, self.fleet, self.ports = said, fleet, ports
        self.server_name = identity.server_name(fleet.name)
        self.exchanged: dict[Any, Any] = {}
        self.packet_ids: dict[int, int] = {}
        self.state, self.folder = state, state / "identity"
        self.folder.mkdir(parents=True)
        self.key = data(said["key_pem"])
        (self.folder / "key.pem").write_bytes(self.key)
        (self.folder / "authority.pem").write_bytes(fleet.authority.pem)
        self.chain = b""
        self.line: ssl.SSLSocket | None = None
        self.heard: Iterator[bytes] = iter(())
        self.kept: list[bytes] = []
        self.pending: list[tuple[Any, str]] = []

    def run(self, operator: Link) -> None:
        for event in self.said["events"]:
            if "operator" in event:
                self._settle(operator)
                act, ended = ACTS[event["operator"]]
                self.pending.append((ended, act(self.fleet, operator)))
            elif "call" in event:
                self._call(event["call"], event["sent"], event["got"])
            elif event["mqtt"] == "device":
                self._say(data(event["packet"]))
            else:
                self._hear(data(event["packet"]))
        self._settle(operator)

    def close(self) -> None:
        if self.line is not None:
            self.line.close()

    def _settle(self, operator: Link) -> None:
        """What the operator began has come to its end."""
        for ended, what in self.pending:
            wait_until(lambda ended=ended, what=what: ended(operator, what), WAIT_S)  # type: ignore[misc]
        self.pending.clear()

    # -- gRPC

    def _call(self, method: str, sent: list[str], got: list[str]) -> None:
        request, reply = classes(method)
        if method.endswith("/Enroll"):
            self._claim(request.FromString(data(sent[0])))
        messages = [replaced(request.FromString(data(each)), self.exchanged) for each in sent]
        with self._channel(method) as channel:
            answers = call(channel, method, [message.SerializeToString() for message in messages])
        for old, new in zip(got, answers, strict=True):
            assert lost(reply.FromString(data(old)), reply.FromString(new), method) == []
        if method.endswith(("/Enroll", "/Renew")):
            self._join(reply.FromString(answers[0]))

    def _claim(self, request: Any) -> None:
        claim = parse_claim(self.fleet.claim(self.said["client"]))
        self.exchanged[request.secret] = claim.secret

    def _join(self, reply: Any) -> None:
        from aggregator.authority import der_to_pem

        self.chain = b"".join(der_to_pem(der) for der in reply.chain_der)
        (self.folder / "chain.pem").write_bytes(self.chain)

    def _channel(self, method: str) -> grpc.Channel:
        enrolling = method.endswith("/Enroll")
        pair = () if enrolling else (self.key, self.chain)
        port = self.ports.enrollment if enrolling else self.ports.fleet
        credentials = grpc.ssl_channel_credentials(self.fleet.authority.pem, *pair)
        options = (("grpc.ssl_target_name_override", self.server_name),)
        return grpc.secure_channel(f"{INSIDE}:{port}", credentials, options)

    # -- MQTT

    def _say(self, packet: bytes) -> None:
        if mqtt.kind(packet) == mqtt.CONNECT:
            self.line = connected(self.state, INSIDE, self.ports.mqtt, self.server_name)
            self.line.settimeout(WAIT_S)
            self.heard = mqtt.packets(exactly(self.line))
        if mqtt.kind(packet) == mqtt.PUBACK:
            packet = mqtt.with_packet_id(packet, self.packet_ids[mqtt.acknowledged(packet)])
        assert self.line is not None
        self.line.sendall(packet)

    def _hear(self, old: bytes) -> None:
        new = self._next(mqtt.kind(old))
        if mqtt.kind(old) == mqtt.CONNACK:
            assert new[3] == 0, "the broker takes the device"
        if mqtt.kind(old) == mqtt.PUBLISH:
            before, now = mqtt.published(old), mqtt.published(new)
            assert now.topic == before.topic
            self.packet_ids[before.packet_id] = now.packet_id
            self._exchange(_ticket(before.payload), _ticket(now.payload))

    def _next(self, wanted: int) -> bytes:
        """The next packet of that type; others may come before it."""
        for packet in self.kept:
            if mqtt.kind(packet) == wanted:
                self.kept.remove(packet)
                return packet
        for packet in self.heard:
            if mqtt.kind(packet) == wanted:
                return packet
            self.kept.append(packet)
        raise AssertionError(f"the broker hung up before a packet of type {wanted}")

    def _exchange(self, old: Ticket, new: Ticket) -> None:
        assert (new.kind, new.fleet, new.client_id) == (old.kind, old.fleet, old.client_id)
        assert new.model_digest == old.model_digest, "the same reports make the same model"
        for name in ("round_id", "nonce", "bundle_digest"):
            self.exchanged[getattr(old, name)] = getattr(new, name)


def _ticket(payload: bytes) -> Ticket:
    return wire.ticket_from_bytes(wire.signed_ticket_from_bytes(payload).ticket)


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
def test_a_device_of_that_version_is_served_by_todays_service(path: Path, tmp_path: Path) -> None:
    said = load(path)
    ports = Ports(free_port(), free_port(), free_port())
    fleet = RunningFleet(tmp_path / "fleet", said["fleet"], ports)
    # The operator's commands go to the address that devices are told: so they and the service are at the same one.
    fleet.start(**settings() | {"FEDLESS__LISTEN__HOSTS": f'["{INSIDE}"]'})
    replay = Replay(said, fleet, tmp_path / "state", ports)
    try:
        with fleet.operator() as operator:
            replay.run(operator)
            assert [run.state for run in operator.runs()] == ["finished"]
            found = [operator.order(order.order_id).answers[0] for order in operator.orders()]
            assert {each.answer for each in found} == {b"", b'{"sum":42,"version":1}'}
            wait_until(lambda: said["client"] not in operator.online(), WAIT_S)
    finally:
        replay.close()
        fleet.close()


def test_replies_that_lack_something_are_found() -> None:
    old = enrollment_pb2.EnrollReply(fleet="a", client_id="b", chain_der=[b"x"])
    assert lost(old, old) == []
    assert lost(old, enrollment_pb2.EnrollReply(fleet="a", client_id="b")) == [
        "/chain_der: was [b'x'], is None"
    ]
    assert len(lost(old, enrollment_pb2.EnrollReply(fleet="c", client_id="b", chain_der=[b"y"]))) == 1
