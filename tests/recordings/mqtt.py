"""As much of MQTT 5 as it takes to tell a recorded conversation's packets apart (OASIS, MQTT 5.0, sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, DISCONNECT = 1, 2, 3, 4, 8, 9, 14
PINGREQ, PINGRESP = 12, 13


class Published(NamedTuple):
    """A PUBLISH packet; `packet_id` 0: of QoS 0."""

    topic: str
    packet_id: int
    payload: bytes


def kind(packet: bytes) -> int:
    """The packet's type."""
    return packet[0] >> 4


def packets(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Whole packets, of a function that gives exactly so many bytes, or b"" at the end of the stream."""
    while head := read(1):
        packet, size, shift = head, 0, 0
        while True:
            byte = read(1)
            packet += byte
            size |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                break
        yield packet + (read(size) if size else b"")


def published(packet: bytes) -> Published:
    """What a PUBLISH says."""
    at = _after_length(packet, 1)
    size = int.from_bytes(packet[at : at + 2])
    topic, at = packet[at + 2 : at + 2 + size].decode(), at + 2 + size
    packet_id = 0
    if packet[0] & 6:
        packet_id, at = int.from_bytes(packet[at : at + 2]), at + 2
    after = _after_length(packet, at)
    properties, shift = 0, 0
    for byte in packet[at:after]:
        properties |= (byte & 127) << shift
        shift += 7
    return Published(topic, packet_id, packet[after + properties :])


def acknowledged(packet: bytes) -> int:
    """The packet id of a PUBACK."""
    return int.from_bytes(packet[2:4])


def with_packet_id(puback: bytes, packet_id: int) -> bytes:
    """The same PUBACK for another packet."""
    return puback[:2] + packet_id.to_bytes(2) + puback[4:]


def _after_length(packet: bytes, at: int) -> int:
    """Where a variable byte integer ends."""
    while packet[at] >= 128:
        at += 1
    return at + 1
