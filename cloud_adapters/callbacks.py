"""Where a platform's queue brings a function's answer back: a small HTTP listener, opened while calls are out.

Each call has a path of 128 random bits, good once. Everything else is answered 404; a body is read up to 64 KiB.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fedless.protocol.cloud import ANSWER_BYTES_MAX
from fedless.protocol.errors import Code, LocalError

_READ_S = 30.0
_HEAD_BYTES_MAX = 16 * 1024


@dataclass(frozen=True)
class Heard:
    """A callback: header names in lower case."""

    headers: Mapping[str, str]
    body: bytes


@dataclass
class Callback:
    """One that is waited for."""

    path: str
    _future: asyncio.Future[Heard]

    async def wait(self, timeout_s: float) -> Heard | None:
        """What came; None if nothing did in time."""
        try:
            return await asyncio.wait_for(self._future, timeout_s)
        except TimeoutError:
            return None


@dataclass
class Callbacks:
    """The listener of one address, `host:port`, for all clients that share it."""

    waiting: dict[str, asyncio.Future[Heard]] = field(default_factory=dict)
    server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def expect(cls, address: str) -> AsyncIterator[Callback]:
        """A path to be called at, while the block runs. Raises `LocalError(PORT_IN_USE)`."""
        here = _OPEN.setdefault(address, cls())
        callback = Callback(secrets.token_hex(16), asyncio.get_running_loop().create_future())
        here.waiting[callback.path] = callback._future  # noqa: SLF001 - its own module
        try:
            await here.open(address)
            yield callback
        finally:
            here.waiting.pop(callback.path, None)
            if not here.waiting and here.server is not None:
                here.server.close()
                here.server = None

    async def open(self, address: str) -> None:
        """Listen, if nobody has begun to."""
        if self.server is not None:
            return
        host, _, port = address.rpartition(":")
        try:
            self.server = await asyncio.start_server(
                self._serve, host.strip("[]"), int(port), limit=_HEAD_BYTES_MAX
            )
        except (OSError, ValueError) as error:
            raise LocalError(
                Code.PORT_IN_USE, f"Cannot listen on {address} for callbacks.", fix="Change `listen`."
            ) from error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_S):
                status = await self._take(reader)
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            status = "400 Bad Request"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        writer.close()

    async def _take(self, reader: asyncio.StreamReader) -> str:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1].rpartition("/")[2]
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:])
        }
        future = self.waiting.get(path)
        if future is None or future.done():
            return "404 Not Found"
        future.set_result(Heard(headers, await _body(reader, headers)))
        return "202 Accepted"


_OPEN: dict[str, Callbacks] = {}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(_bounded(int(headers.get("content-length", "0"))))
    data = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        data += await reader.readexactly(_bounded(len(data) + size) - len(data))
        await reader.readline()
    return data


def _bounded(size: int) -> int:
    if not 0 <= size <= ANSWER_BYTES_MAX:
        message = "a callback that is too long"
        raise ValueError(message)
    return size
