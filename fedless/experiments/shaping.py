"""Slow lines without root: an HTTP proxy for each client, which delays and paces what goes through it.

Run by `fleet` as a process of its own, `python -m fedless.experiments.shaping FILE`. gRPC goes through the proxy that
the variable `FEDLESS_PROXY` names (CONNECT, RFC 9110 section 9.3.6): TLS stays end to end, and no code of the clients
changes. What a client sends and receives is held back for `latency_ms` in each direction and paced to its Mbit/s, all
its connections together. Not shaped: wake-ups over MQTT (some hundred bytes each) and a platform's invocations. Only
addresses of this machine are connected to.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.link import PROXY
from fedless.experiments.groups import Network

HOST = "127.0.0.1"
PORTS_FILE = "proxies.json"
CHUNK_BYTES = 16 * 1024
HEAD_BYTES_MAX = 8 * 1024
CONNECT_S = 20.0
_QUEUE = 64
"""Chunks on the way: the line's buffer, so that a fast sender feels the line."""
_REQUEST = re.compile(rb"CONNECT (127\.0\.0\.1|localhost|\[::1\]):(\d{1,5}) HTTP/1\.[01]\r\n")


def variables(proxy: str) -> dict[str, str]:
    """What makes a client's gRPC go through a proxy, whatever its environment excepts; nothing for no proxy."""
    return {PROXY: proxy, "no_grpc_proxy": "none.invalid"} if proxy else {}


class Pace:
    """How much one direction of one client's line may carry: the moment at which the next bytes may leave."""

    def __init__(self, mbit_s: float) -> None:
        self._bytes_s = mbit_s * 125_000
        self._free_at = 0.0

    def due(self, count: int, now: float) -> float:
        """When (s, the clock of `now`) the last of `count` bytes that come now has gone through."""
        if not self._bytes_s:
            return now
        self._free_at = max(self._free_at, now) + count / self._bytes_s
        return self._free_at


@dataclass(frozen=True)
class Line:
    """One client's line, with all its connections."""

    latency_s: float
    up: Pace
    down: Pace

    @classmethod
    def of(cls, network: Network) -> Line:
        """The line that a profile describes."""
        return cls(network.latency_ms / 1000, Pace(network.up_mbit_s), Pace(network.down_mbit_s))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the client, to its end."""
        far: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                asked = _REQUEST.match(await reader.readuntil(b"\r\n\r\n"))
                if asked is None:
                    raise ConnectionRefusedError
                await asyncio.sleep(2 * self.latency_s)  # the handshakes' round trip
                far_reader, far = await asyncio.open_connection(HOST, int(asked[2]))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, far, self.up))
                both.create_task(self._carry(far_reader, writer, self.down))
        except* (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the ends notice by themselves
        finally:
            for one in (writer, far):
                if one is not None:
                    one.close()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, pace: Pace) -> None:
        """Everything that comes in one direction, each chunk when it is due; then the end of it."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)

        async def deliver() -> None:
            while True:
                due, chunk = await on_the_way.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not chunk:
                    break
                target.write(chunk)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()

        async def take() -> None:
            chunk = b"first"
            while chunk:
                chunk = await source.read(CHUNK_BYTES)
                await on_the_way.put((pace.due(len(chunk), time.monotonic()) + self.latency_s, chunk))

        async with asyncio.TaskGroup() as both:
            both.create_task(deliver())
            both.create_task(take())


async def serve(lines: Mapping[str, Line], ports_file: Path) -> None:
    """A proxy for each client by id, until SIGTERM; `ports_file` gets their ports (JSON) when all listen."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    ports, servers = {}, []
    for client_id, line in lines.items():
        server = await asyncio.start_server(line.serve, HOST, 0, limit=HEAD_BYTES_MAX)
        ports[client_id] = server.sockets[0].getsockname()[1]
        servers.append(server)
    await asyncio.to_thread(ports_file.write_text, json.dumps(ports) + "\n", encoding="utf-8")
    await ended.wait()
    for server in servers:
        server.close()


def main(file: Path) -> None:
    """`file` is JSON: for each client id the fields of its `Network`. The ports go into a file beside it."""
    values = json.loads(file.read_text(encoding="utf-8"))
    lines = {client_id: Line.of(Network(**fields)) for client_id, fields in values.items()}
    asyncio.run(serve(lines, file.with_name(PORTS_FILE)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
