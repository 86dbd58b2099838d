"""Stands between a device and its fleet, holds the device's own keys, and writes down every byte that both say.

The device is told this relay's addresses. TLS ends here on both sides, so it can only be made by whoever has the
fleet's authority and the device's key: a test.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from aggregator.front import Front
from edge_runtime.wake import tls_context
from fedless.protocol import identity
from tests.recordings import mqtt
from tests.running_fleet import Credentials, RunningFleet, now_ms

HERE, INSIDE = "127.0.0.1", "127.0.0.2"
CALL_S = 60.0
TAKES_STREAM, GIVES_STREAM = frozenset({"PutReport"}), frozenset({"FetchBlob"})
Event = dict[str, Any]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Tape:
    """What was said, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._lock = threading.Lock()

    def add(self, **event: Any) -> Event:
        with self._lock:
            self.events.append(event)
        return event


class _Calls(grpc.GenericRpcHandler):
    """Passes calls on as they are; `upstream` opens a channel with the device's identity."""

    def __init__(self, tape: Tape, upstream: Callable[[], grpc.Channel]) -> None:
        self._tape, self._upstream = tape, upstream

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        name = method.rpartition("/")[2]
        if name in TAKES_STREAM:
            return grpc.stream_unary_rpc_method_handler(lambda sent, _: self._call(method, list(sent))[0])
        if name in GIVES_STREAM:
            return grpc.unary_stream_rpc_method_handler(lambda sent, _: iter(self._call(method, [sent])))
        return grpc.unary_unary_rpc_method_handler(lambda sent, _: self._call(method, [sent])[0])

    def _call(self, method: str, sent: list[bytes]) -> list[bytes]:
        event = self._tape.add(call=method, sent=[text(data) for data in sent], got=[])
        with self._upstream() as channel:
            got = call(channel, method, sent)
        event["got"] = [text(data) for data in got]
        return got


def call(channel: Any, method: str, sent: list[bytes]) -> list[bytes]:
    """One call of raw messages."""
    name = method.rpartition("/")[2]
    if name in TAKES_STREAM:
        return [channel.stream_unary(method)(iter(sent), timeout=CALL_S)]
    if name in GIVES_STREAM:
        return list(channel.unary_stream(method)(sent[0], timeout=CALL_S))
    return [channel.unary_unary(method)(sent[0], timeout=CALL_S)]


class Relay:
    """Listens on `HERE` where the fleet listens on `INSIDE`, with the same port numbers."""

    def __init__(self, fleet: RunningFleet, state: Path, ports: tuple[int, int, int]) -> None:
        self.tape = Tape()
        self._fleet, self._state, self._ports = fleet, state, ports
        self._server_name = identity.server_name(fleet.name)
        name = identity.Name(fleet.name, identity.Role.AGGREGATOR, "relay")
        self._own = Credentials.issued(fleet.authority, name, now_ms())
        self._servers: list[grpc.Server] = []
        self._loop = asyncio.new_event_loop()
        self._lines: list[_Line] = []

    def start(self) -> None:
        fleet_port, enrollment_port, mqtt_port = self._ports
        self._serve(f"{HERE}:{fleet_port}", self._fleet_channel, ask=True)
        inner = self._serve(f"{HERE}:0", self._enrollment_channel, ask=False)
        self._front = Front(self._fleet.authority.pem, 50, 50)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._front.start(HERE, enrollment_port, inner), self._loop).result(
            10
        )
        self._listener = socket.create_server((HERE, mqtt_port))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        for server in self._servers:
            server.stop(0).wait()
        asyncio.run_coroutine_threadsafe(self._front.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)
        self._listener.close()
        for line in self._lines:
            line.end()

    def _serve(self, address: str, upstream: Callable[[], grpc.Channel], *, ask: bool) -> int:
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_Calls(self.tape, upstream),))
        root = self._fleet.authority.pem if ask else None
        pairs = [(self._own.key, self._own.chain)]
        credentials = grpc.ssl_server_credentials(pairs, root, require_client_auth=ask)
        port = server.add_secure_port(address, credentials)
        server.start()
        self._servers.append(server)
        return port

    def _fleet_channel(self) -> grpc.Channel:
        folder = self._state / "identity"
        pair = ((folder / "key.pem").read_bytes(), (folder / "chain.pem").read_bytes())
        return self._channel(self._ports[0], grpc.ssl_channel_credentials(self._fleet.authority.pem, *pair))

    def _enrollment_channel(self) -> grpc.Channel:
        return self._channel(self._ports[1], grpc.ssl_channel_credentials(self._fleet.authority.pem))

    def _channel(self, port: int, credentials: grpc.ChannelCredentials) -> grpc.Channel:
        options = (("grpc.ssl_target_name_override", self._server_name),)
        return grpc.secure_channel(f"{INSIDE}:{port}", credentials, options)

    def _accept(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = self._state.parent
        (folder / "relay.pem").write_bytes(self._own.chain)
        (folder / "relay.key").write_bytes(self._own.key)
        context.load_cert_chain(folder / "relay.pem", folder / "relay.key")
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._lines.append(_Line(self, context.wrap_socket(plain, server_side=True)))

    def broker(self) -> ssl.SSLSocket:
        """A connection to the real broker, as the device."""
        return connected(self._state, INSIDE, self._ports[2], self._server_name)


def connected(state: Path, host: str, port: int, server_name: str) -> ssl.SSLSocket:
    """TLS to a broker with the identity in `state`."""
    plain = socket.create_connection((host, port), 10)
    plain.settimeout(None)
    return tls_context(str(state), server_name).wrap_socket(plain)


class _Line:
    """One device's connection to the broker."""

    def __init__(self, relay: Relay, device: ssl.SSLSocket) -> None:
        self._tape, self._ends = relay.tape, (device, relay.broker())
        self._threads = [
            threading.Thread(target=self._pass, args=(*pair, who), daemon=True)
            for pair, who in ((self._ends, "device"), (self._ends[::-1], "broker"))
        ]
        for thread in self._threads:
            thread.start()

    def _pass(self, source: ssl.SSLSocket, target: ssl.SSLSocket, who: str) -> None:
        with suppress(OSError):
            for packet in mqtt.packets(exactly(source)):
                if mqtt.kind(packet) not in (mqtt.PINGREQ, mqtt.PINGRESP):
                    self._tape.add(mqtt=who, packet=text(packet))
                target.sendall(packet)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        for each in self._ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in self._ends:
            each.close()


def exactly(source: ssl.SSLSocket) -> Callable[[int], bytes]:
    """A function that reads so many bytes, or b"" at the end."""

    def read(count: int) -> bytes:
        return b"".join(_pieces(source, count))

    return read


def _pieces(source: ssl.SSLSocket, left: int) -> Iterator[bytes]:
    while left:
        piece = source.recv(left)
        if not piece:
            return
        left -= len(piece)
        yield piece
