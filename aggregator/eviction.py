"""Cuts the open MQTT connection of a client that was revoked, and keeps it out until the broker does.

A broker looks at its list of revoked certificates when a client connects, and mosquitto 2.0 has no command that ends a
connection. But every broker keeps one connection for each client id and ends the older one (MQTT 5, 3.1.4 and 4.13,
"session taken over"). So the authority signs a certificate with the client's common name, for a key that is made here
and thrown away at once, and a clean session with it takes the old one's place: the connection is cut, and the wake-ups
that waited are forgotten. If the client comes back, the broker has not read the new list: it is cut again, ever
more seldom, and the operator is told. Works with the child and with any broker of one's own. Called by `main`.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion

from aggregator.authority import Authority
from aggregator.interfaces import Clock
from aggregator.wake import CONNECT_S, KEEPALIVE_S, MqttAccess, host_port, tls_context
from fedless.protocol import identity

VALID_MS = 600_000
HOLD_S = 3.0
"""The place is kept this long: whoever was cut comes back within about a second."""
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Between one attempt and the next, if the broker is away or lets the client in again."""
TOLD_AT = 3
FORGET_MS = 600_000
OFFLINE = b'{"online":false}'
_log = structlog.get_logger("eviction")


class _Cut(StrEnum):
    CUT = "cut"
    RETAKEN = "retaken"
    AWAY = "away"


class Evictions:
    """Of one fleet and its broker.

    `folder` is a private place for a moment; `gone` says whether a client is (still) revoked.
    """

    def __init__(
        self,
        access: MqttAccess,
        authority: Authority,
        folder: Path,
        clock: Clock,
        gone: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._access = access
        self._authority = authority
        self._folder = folder
        self._clock = clock
        self._gone = gone
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, tuple[int, int]] = {}

    def follow(self, access: MqttAccess, authority: Authority) -> None:
        """The fleet has another authority, or believes others."""
        self._access, self._authority = access, authority

    def begin(self, client_id: str) -> None:
        """In the event loop: see to it that this client is cut off."""
        if client_id not in self._tasks:
            task = self._tasks[client_id] = asyncio.ensure_future(self._evict(client_id))
            task.add_done_callback(lambda _: self._tasks.pop(client_id, None))

    async def _evict(self, client_id: str) -> None:
        """Cut it until it stays away for a moment; the pauses grow with each time that it came back."""
        while await self._gone(client_id):
            tried, pause_s = self._try(client_id)
            address = self._access.addresses[tried % len(self._access.addresses)]
            outcome = await asyncio.to_thread(self._take_over, client_id, address)
            if outcome is _Cut.CUT:
                _log.info("connection_cut", client=client_id)
                return
            if tried == TOLD_AT:
                fix = "give the broker the new list of revoked certificates and reload it"
                _log.warning("revoked_client_comes_back", client=client_id, why=outcome.value, fix=fix)
            await asyncio.sleep(pause_s)

    def _try(self, client_id: str) -> tuple[int, float]:
        """How often this client was cut lately, this time included, and the pause after it."""
        now_ms = self._clock()
        self._tried = {name: item for name, item in self._tried.items() if now_ms - item[1] < FORGET_MS}
        tried = self._tried.get(client_id, (0, 0))[0] + 1
        self._tried[client_id] = (tried, now_ms)
        return tried, PAUSES_S[min(tried, len(PAUSES_S)) - 1]

    async def close(self) -> None:
        """At the service's end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_over(self, client_id: str, address: str) -> _Cut:
        """In a thread: connect in the client's place, say that it is offline, stay a little."""
        connected, lost = threading.Event(), threading.Event()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        client.on_connect = lambda *given: None if given[3].is_failure else connected.set()
        client.on_disconnect = lambda *_: lost.set()
        try:
            client.tls_set_context(self._context(client_id))
            client.connect(*host_port(address), KEEPALIVE_S, clean_start=True)
        except OSError as error:
            _log.warning("broker_unreachable", address=address, error=str(error))
            return _Cut.AWAY
        client.loop_start()
        try:
            if not connected.wait(CONNECT_S):
                return _Cut.AWAY
            client.publish(f"fedless/v1/{self._access.fleet}/status/{client_id}", OFFLINE, qos=1, retain=True)
            return _Cut.RETAKEN if lost.wait(HOLD_S) else _Cut.CUT
        finally:
            client.disconnect()
            client.loop_stop()

    def _context(self, client_id: str) -> ssl.SSLContext:
        """TLS in the client's name; the files with its key are gone when this returns."""
        key = identity.new_key()
        name = identity.Name(self._access.fleet, identity.Role.DEVICE, client_id)
        issued = self._authority.issue_until(name, identity.make_csr(key), self._clock() + VALID_MS)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            chain, secret = Path(folder, "cert.pem"), Path(folder, "cert.key")
            chain.write_bytes(issued.chain_pem)
            secret.write_bytes(identity.key_pem(key))
            return tls_context(replace(self._access, certificate=chain, key=secret))
