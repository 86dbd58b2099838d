"""The enrollment port: plain `GET /ca.pem`, and TLS passed through to the Enrollment service.

A device knows nothing but a claim, so it fetches the authority's certificate without TLS (the
claim's digest proves it) and enrolls over TLS, on one port. The first byte tells them apart: a
TLS handshake begins with 0x16. Strangers reach this port: connections are counted in all and by
address, silence is timed out, and addresses with many failed claims have to wait.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate

import structlog

from fedless.protocol.errors import Code, LocalError, PeerError

TLS_HANDSHAKE = b"\x16"
REQUEST_BYTES_MAX = 4096
PIECE_BYTES = 64 * 1024
SILENCE_S = 15.0
CONNECTION_S = 120.0
MINUTE_MS = 60_000
_log = structlog.get_logger("front")


class FailedClaims:
    """How many claims failed from each address in the last minute."""

    def __init__(self, per_minute: int, clock: Callable[[], int]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._failures: dict[str, list[int]] = {}

    def check(self, address: str) -> None:
        """Raises `PeerError` BUSY, with the time to wait, when there were too many."""
        now_ms = self._clock()
        recent = [at for at in self._failures.get(address, ()) if at > now_ms - MINUTE_MS]
        if len(recent) >= self._per_minute:
            wait_ms = recent[-self._per_minute] + MINUTE_MS - now_ms
            detail = f"{len(recent)} claims from this address failed in the last minute."
            raise PeerError(Code.BUSY, detail, retry_after_ms=wait_ms)

    def add(self, address: str) -> None:
        """Counts a failure."""
        horizon = self._clock() - MINUTE_MS
        self._failures = {a: kept for a, times in self._failures.items() if (kept := _after(times, horizon))}
        self._failures.setdefault(address, []).append(self._clock())


class Front:
    """Listens on the enrollment port in front of an Enrollment service on a loopback port.

    `authority_pem` is what `/ca.pem` gives.
    """

    def __init__(self, authority_pem: bytes, connections: int, per_address: int) -> None:
        self.authority_pem = authority_pem
        self._connections = connections
        self._per_address = per_address
        self._open: Counter[str] = Counter()
        self._callers: dict[int, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inner_port = 0

    async def start(self, address: str, port: int, inner_port: int) -> int:
        """Begins to listen; the port that it got. Raises `LocalError` PORT_IN_USE."""
        self._inner_port = inner_port
        try:
            self._server = await asyncio.start_server(self._serve, address.strip("[]"), port)
        except OSError as error:
            detail = f"Cannot listen on {address}:{port}."
            raise LocalError(Code.PORT_IN_USE, detail, fix="Change listen.enrollment_port.") from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stops listening and ends open connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def address_of(self, inner_port: int) -> str:
        """The address behind a connection that the Enrollment service sees coming from a loopback port."""
        return self._callers.get(inner_port, "loopback")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        address = str((writer.get_extra_info("peername") or ("unknown",))[0])
        full = self._open.total() >= self._connections or self._open[address] >= self._per_address
        if task is None or full:
            _log.warning("connection_refused", address=address)
            writer.close()
            return
        self._tasks.add(task)
        self._open[address] += 1
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(CONNECTION_S):
                    await self._answer(reader, writer, address)
        finally:
            self._open[address] -= 1
            self._open += Counter()  # forgets addresses at zero
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        async with asyncio.timeout(SILENCE_S):
            first = await reader.readexactly(1)
        if first == TLS_HANDSHAKE:
            await self._pass_through(first, reader, writer, address)
            return
        async with asyncio.timeout(SILENCE_S):
            head = first
            while b"\r\n\r\n" not in head and len(head) < REQUEST_BYTES_MAX:
                more = await reader.read(REQUEST_BYTES_MAX - len(head))
                if not more:
                    return
                head += more
            writer.write(self._http(head))
            await writer.drain()

    def _http(self, head: bytes) -> bytes:
        line = head.split(b"\r\n", 1)[0].split(b" ")
        if line[:2] == [b"GET", b"/ca.pem"]:
            return _response("200 OK", "application/x-pem-file", self.authority_pem)
        if len(line) == 3 and line[2].startswith(b"HTTP/"):  # noqa: PLR2004 - method, path, version
            return _response("404 Not Found", "text/plain", b"Only /ca.pem is here.\n")
        return _response("400 Bad Request", "text/plain", b"Expected HTTP or TLS.\n")

    async def _pass_through(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
    ) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner_port)
        own_port: int = inner_writer.get_extra_info("sockname")[1]
        self._callers[own_port] = address
        try:
            inner_writer.write(first)
            up = asyncio.create_task(_pump(reader, inner_writer))
            down = asyncio.create_task(_pump(inner_reader, writer))
            _, pending = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            del self._callers[own_port]
            inner_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await asyncio.wait_for(reader.read(PIECE_BYTES), SILENCE_S):
        writer.write(piece)
        await writer.drain()


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = [
        f"HTTP/1.1 {status}",
        f"Date: {formatdate(usegmt=True)}",  # a device compares its clock with it
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode("ascii") + body


def _after(times: list[int], horizon_ms: int) -> list[int]:
    return [at for at in times if at > horizon_ms]
