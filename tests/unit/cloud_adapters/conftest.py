"""A platform that misbehaves: a TCP server that answers each request with the next of a list of raw bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

GOOD = json.dumps({"fedless": 1, "outcome": "reported", "start": "cold", "total_ms": 120.0}).encode()
HANG = b"hang"


def reply(status: int, body: bytes = b"", kind: str = "application/json", *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} -",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        "connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Platform:
    """`requests` are what came, heads and bodies."""

    answers: Sequence[bytes]
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
            self.requests.append(head + body)
            if answer == HANG:
                await reader.read()
            writer.write(b"" if answer == HANG else answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@pytest.fixture
async def platform() -> AsyncIterator[Callable[..., object]]:
    servers: list[asyncio.Server] = []

    async def start(*answers: bytes) -> Platform:
        made = Platform(answers)
        servers.append(await asyncio.start_server(made.serve, "127.0.0.1", 0))
        made.port = servers[-1].sockets[0].getsockname()[1]
        return made

    yield start
    for server in servers:
        server.close()
