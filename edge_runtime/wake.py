"""The agent's line to the broker: MQTT 5 over mTLS, one persistent session, driven by the agent's own select loop.

Wake-ups are opaque bytes here; the participant verifies them. QoS 1 with acknowledgement by hand: a wake-up is
acknowledged when the agent says so, and comes again after a power cut otherwise. No thread, no timer of paho's.
Imports what idling needs and nothing else.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

SESSION_S = 7 * 24 * 3600
WILL_DELAY_S = 5
WAKE_BYTES_MAX = 4096
CONNECT_S = 10.0
ONLINE, OFFLINE = b'{"online":true}', b'{"online":false}'
_REASON_OK = 0


class FleetFile(NamedTuple):
    """What the agent needs of `identity/fleet.json`."""

    fleet: str
    client_id: str
    server_name: str
    brokers: tuple[tuple[str, int], ...]

    @classmethod
    def read(cls, state: str) -> FleetFile:
        """Read it. Raises OSError or ValueError."""
        with open(f"{state}/identity/fleet.json", "rb") as file:  # noqa: PTH123 - pathlib costs memory
            values = json.load(file)
        try:
            brokers = tuple(_address(text) for text in values["endpoints"]["mqtt"])
            found = cls(values["fleet"], values["client_id"], values["server_name"], brokers)
        except (KeyError, TypeError) as error:
            message = f"fleet.json lacks {error}"
            raise ValueError(message) from error
        if not brokers:
            message = "fleet.json names no broker"
            raise ValueError(message)
        return found


class _Context(ssl.SSLContext):
    """A TLS context that checks the fleet's fixed server name, whatever address the broker has."""

    fleet_name: str

    def wrap_socket(self, sock: Any, *_: Any, **options: Any) -> ssl.SSLSocket:  # noqa: ANN401 - ssl's own signature
        """As ssl's, with our server name in place of the address."""
        return super().wrap_socket(sock, **options | {"server_hostname": self.fleet_name})


def tls_context(state: str, server_name: str) -> ssl.SSLContext:
    """TLS 1.3 with the device's certificate; only the fleet's authority is trusted. Raises OSError (ssl.SSLError)."""
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.fleet_name = server_name
    context.load_verify_locations(f"{state}/identity/authority.pem")
    context.load_cert_chain(f"{state}/identity/chain.pem", f"{state}/identity/key.pem")
    return context


class WakeLine:
    """One MQTT session. `on_wake(mid, data)` gets each wake-up, `on_change(connected, reason)` each change."""

    def __init__(
        self,
        state: str,
        keepalive_s: int,
        window: int,
        on_wake: Callable[[int, bytes], None],
        on_change: Callable[[bool, str], None],
    ) -> None:
        self._state = state
        self._keepalive_s = keepalive_s
        self._window = window
        self._on_wake = on_wake
        self._on_change = on_change
        self._client: Client | None = None
        self._fleet: FleetFile | None = None
        self._attempt = 0
        self._refusal = ""
        self.connected = False
        """Whether the broker has said yes on the present connection."""

    @property
    def open(self) -> bool:
        """Whether there is a connection, welcome or not."""
        return self.socket is not None

    @property
    def socket(self) -> ssl.SSLSocket | None:
        """What to wait on; None without a connection."""
        found = self._client.socket() if self._client is not None else None
        return found if isinstance(found, ssl.SSLSocket) else None

    @property
    def wants_write(self) -> bool:
        """Whether to wait until the socket can be written, too."""
        return self._client is not None and self._client.want_write()

    @property
    def pending(self) -> bool:
        """Whether TLS holds bytes that a select would not show."""
        found = self.socket
        return found is not None and found.pending() > 0

    def connect(self) -> None:
        """Open a connection to the next broker address; blocks for at most `CONNECT_S`. Raises OSError or ValueError.

        Identity files are read anew each time: a renewal or a move takes effect by itself.
        """
        self._fleet = fleet = FleetFile.read(self._state)
        host, port = fleet.brokers[self._attempt % len(fleet.brokers)]
        self._attempt += 1
        self._client = client = self._new_client(fleet)
        connect = _properties(PacketTypes.CONNECT)
        connect.SessionExpiryInterval = SESSION_S
        connect.ReceiveMaximum = self._window
        client.connect(host, port, self._keepalive_s, clean_start=False, properties=connect)

    def read(self) -> None:
        """The socket can be read."""
        if self._client is not None:
            self._client.loop_read()

    def write(self) -> None:
        """The socket can be written."""
        if self._client is not None:
            self._client.loop_write()

    def keep(self) -> None:
        """Now and then: ping when it is time, find a dead connection."""
        if self._client is not None:
            self._client.loop_misc()

    def acknowledge(self, mid: int) -> None:
        """The broker may forget this wake-up."""
        if self._client is not None:
            self._client.ack(mid, 1)

    def close(self) -> None:
        """Say offline and leave; the session stays at the broker."""
        client, self._client = self._client, None
        self.connected = False
        if client is None or client.socket() is None or self._fleet is None:
            return
        client.on_disconnect = None
        client.publish(_topic(self._fleet, "status"), OFFLINE, qos=0, retain=True)
        leave = _properties(PacketTypes.DISCONNECT)
        leave.SessionExpiryInterval = SESSION_S
        client.disconnect(properties=leave)
        if client.socket() is not None:
            client.loop_write()

    def drop(self) -> None:
        """Give the present connection up without a word."""
        client, self._client = self._client, None
        self.connected = False
        if client is not None:
            client.on_disconnect = None
            found = client.socket()
            if found is not None:
                found.close()

    def _new_client(self, fleet: FleetFile) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=fleet.client_id, protocol=MQTTv5, manual_ack=True
        )
        client.connect_timeout = CONNECT_S
        client.tls_set_context(tls_context(self._state, fleet.server_name))
        will = _properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = WILL_DELAY_S
        client.will_set(_topic(fleet, "status"), OFFLINE, qos=1, retain=True, properties=will)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        return client

    def _connected(
        self, client: Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.value != _REASON_OK or self._fleet is None:
            self._refusal = f"refused by the broker: {reason}"  # which closes the connection next
            return
        self.connected = True
        client.subscribe(_topic(self._fleet, "wake"), qos=1)
        client.publish(_topic(self._fleet, "status"), ONLINE, qos=1, retain=True)
        host, port = self._fleet.brokers[(self._attempt - 1) % len(self._fleet.brokers)]
        self._on_change(True, f"{host}:{port}")  # noqa: FBT003 - a state, told by name in the callback

    def _disconnected(
        self, _client: object, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._client, self.connected = None, False
        why, self._refusal = self._refusal or str(reason), ""
        self._on_change(False, why)  # noqa: FBT003

    def _message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        if message.qos == 1 and 0 < len(message.payload) <= WAKE_BYTES_MAX and not message.retain:
            self._on_wake(message.mid, bytes(message.payload))
        elif message.qos == 1:
            self.acknowledge(message.mid)


class Allowance:
    """A token bucket: so many starts a minute, as many at once. `now` is CLOCK_MONOTONIC, seconds."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_s = per_minute / 60
        self._most = float(per_minute)
        self._left = self._most
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until a start is allowed; 0: now."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        return 0.0 if self._left >= 1 else (1 - self._left) / self._per_s

    def take(self) -> None:
        """A start was made."""
        self._left -= 1


def jitter() -> float:
    """A number from 0.5 to 1 from the operating system; `random` would cost memory."""
    return 0.5 + int.from_bytes(os.urandom(2), "big") / 131_072


def _properties(packet: int) -> Properties:
    """An empty set for one type of packet."""
    return Properties(packet)  # type: ignore[no-untyped-call]


def _topic(fleet: FleetFile, what: str) -> str:
    return f"fedless/v1/{fleet.fleet}/{what}/{fleet.client_id}"


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
