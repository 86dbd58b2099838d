"""Wake-ups over MQTT 5, and presence from the devices' status topics.

paho runs in a thread of its own; the event loop gets its answers through futures. Wake-ups are
QoS 1 with the time to the deadline as their expiry, so a sleeping device gets one that is still
good and never one that is not. A lost broker is not an error: publishing then gives a receipt
that says so, and the connection comes back by itself. Called by the coordinator as its `Waker`.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from aggregator.interfaces import Clock, Receipt
from fedless.protocol.errors import Code
from fedless.protocol.identity import server_name

KEEPALIVE_S = 60
CONNECT_S = 10.0
PUBLISH_S = 10.0
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
IN_FLIGHT_MAX = 256
PENDING_MAX = 10_000
STATUS_BYTES_MAX = 256
NO_SESSION = "It has no session at the broker: it has not connected yet, or not for a week."
_NOBODY_LISTENS = 0x10  # MQTT 5, 3.4.2.1: taken, but there is no subscriber
_log = structlog.get_logger("wake")

Presence = Callable[[str, bool], None]
"""Called in the event loop with a client id and whether it is online."""


@dataclass(frozen=True)
class MqttAccess:
    """How to reach the broker: addresses (`host:port`), whom to believe (PEM), and the files of our own proof."""

    fleet: str
    addresses: tuple[str, ...]
    authority: bytes
    certificate: Path
    key: Path


class _FixedNameContext(ssl.SSLContext):
    """A TLS context that checks the fleet's own server name, whatever the address is."""

    fixed_name: str

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:  # noqa: ANN401 - ssl's own signature
        """As in `ssl`, with the fixed name."""
        return super().wrap_socket(sock, *args, **(options | {"server_hostname": self.fixed_name}))


def tls_context(access: MqttAccess) -> ssl.SSLContext:
    """TLS 1.3 with a certificate of the fleet, to a broker that has one. Raises OSError (ssl.SSLError)."""
    context = _FixedNameContext(ssl.PROTOCOL_TLS_CLIENT)
    context.fixed_name = server_name(access.fleet)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=access.authority.decode("ascii"))
    context.load_cert_chain(access.certificate, access.key)
    return context


class _AtEachConnection(ssl.SSLContext):
    """The TLS context of a client that connects again and again: made anew each time, of files as they are then."""

    make: Callable[[], ssl.SSLContext]

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:  # noqa: ANN401 - ssl's own signature
        """As in `ssl`, by the newest context."""
        return self.make().wrap_socket(sock, *args, **options)


def host_port(address: str) -> tuple[str, int]:
    """The parts of `host:port`, without the brackets of an IPv6 address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class MqttWaker:
    """The `Waker` of a fleet with a broker."""

    def __init__(self, access: MqttAccess, clock: Clock, presence: Presence) -> None:
        self._access = access
        self._clock = clock
        self._presence = presence
        self._root = f"fedless/v1/{access.fleet}"
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._stopping = threading.Event()
        self._attempt = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = asyncio.Event()
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def follow(self, access: MqttAccess) -> None:
        """Believe others, or prove ourselves by another certificate, from the next connection on."""
        self._access = access

    async def start(self) -> bool:
        """Begins to connect; whether it is connected within ten seconds. If not, says so, and goes on trying."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        try:
            await asyncio.wait_for(self._connected.wait(), CONNECT_S)
        except TimeoutError:
            _log.warning(
                "broker_unreachable", addresses=" ".join(self._access.addresses),
                detail=Code.BROKER_UNREACHABLE.sentence,
                fix="is mosquitto running, and does the firewall let us through?", then="wake-ups wait for it",
            )  # fmt: skip
            return False
        return True

    def is_connected(self) -> bool:
        """Whether the broker takes wake-ups now."""
        return bool(self._client.is_connected())

    async def stop(self) -> None:
        """Disconnects and ends the thread."""
        self._stopping.set()
        self._client.disconnect()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 5.0)

    async def wake(self, client_id: str, signed_ticket: bytes, deadline_ms: int) -> Receipt:
        """Sends a wake-up that expires at the deadline (Unix ms)."""
        left_s = -(-(deadline_ms - self._clock()) // 1000)
        if left_s <= 0:
            return Receipt(delivered=False, detail="The deadline has passed.")
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = min(left_s, 2**32 - 1)
        return await self._publish(f"wake/{client_id}", signed_ticket, properties, retain=False)

    async def announce(self, signed: bytes) -> None:
        """Publishes the newest model's announcement, kept by the broker for those who come later."""
        receipt = await self._publish("announce", signed, None, retain=True)
        if not receipt.delivered and receipt.detail != NO_SESSION:
            _log.warning("announcement_lost", detail=receipt.detail)

    async def _publish(
        self, topic: str, payload: bytes, properties: Properties | None, *, retain: bool
    ) -> Receipt:
        if not self._client.is_connected():
            return Receipt(delivered=False, detail="The broker is not connected.")
        if len(self._waiting) >= PENDING_MAX:
            return Receipt(delivered=False, detail=f"{PENDING_MAX} wake-ups wait for the broker.")
        info = self._client.publish(f"{self._root}/{topic}", payload, 1, retain, properties)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            return Receipt(delivered=False, detail=mqtt.error_string(info.rc))
        # No await since `publish`, so the acknowledgement, which comes through the loop, cannot be missed.
        future = self._waiting[info.mid] = asyncio.get_running_loop().create_future()
        try:
            refusal = await asyncio.wait_for(future, PUBLISH_S)
        except TimeoutError:
            refusal = "The broker did not acknowledge."
        finally:
            self._waiting.pop(info.mid, None)
        return Receipt(delivered=not refusal, detail=refusal)

    # -- paho's thread

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, "@aggregator", protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        tls_context(self._access)  # what is wrong is said at the start
        context = _AtEachConnection(ssl.PROTOCOL_TLS_CLIENT)
        context.make = lambda: tls_context(self._access)
        client.tls_set_context(context)
        client.max_inflight_messages_set(IN_FLIGHT_MAX)
        client.max_queued_messages_set(PENDING_MAX)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _run(self) -> None:
        while not self._stopping.is_set():
            address = self._access.addresses[self._attempt % len(self._access.addresses)]
            try:
                self._client.connect(*host_port(address), KEEPALIVE_S, clean_start=True)
                self._client.loop_forever(timeout=KEEPALIVE_S / 2)
            except OSError as error:
                _log.warning("broker_unreachable", address=address, error=str(error))
            except Exception as error:  # noqa: BLE001 - were this thread to end, so would all wake-ups, unheard
                _log.error("mqtt_failed", error=type(error).__name__, exc_info=error)
            wait_s = RETRY_S[min(self._attempt, len(RETRY_S) - 1)]
            self._attempt += 1
            self._stopping.wait(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads retries, protects nothing

    def _on_connect(
        self, client: mqtt.Client, _user: object, _flags: object, reason: ReasonCode, _more: object
    ) -> None:
        if reason.is_failure:
            _log.error("broker_refused", reason=str(reason))
            return
        self._attempt = 0
        client.subscribe(f"{self._root}/status/+", qos=1)
        _log.info("broker_connected")
        self._in_loop(self._connected.set)

    def _on_disconnect(
        self, _client: mqtt.Client, _user: object, _flags: object, reason: ReasonCode, _more: object
    ) -> None:
        if not self._stopping.is_set():
            _log.warning("broker_lost", reason=str(reason))

    def _on_publish(
        self, _client: mqtt.Client, _user: object, mid: int, reason: ReasonCode, _more: object
    ) -> None:
        refusal = str(reason) if reason.is_failure else ""
        self._in_loop(self._acknowledged, mid, NO_SESSION if reason.value == _NOBODY_LISTENS else refusal)

    def _on_message(self, _client: mqtt.Client, _user: object, message: mqtt.MQTTMessage) -> None:
        client_id = message.topic.rpartition("/")[2]
        self._in_loop(self._presence, client_id, is_online(message.payload))

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _acknowledged(self, mid: int, refusal: str) -> None:
        future = self._waiting.get(mid)
        if future is not None and not future.done():
            future.set_result(refusal)


def is_online(payload: bytes | bytearray) -> bool:
    """What a status message says: short JSON with `"online": true`; anything else is "not online"."""
    if len(payload) > STATUS_BYTES_MAX:  # also bounds how deep it can be nested
        return False
    try:
        value = json.loads(payload)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("online") is True
