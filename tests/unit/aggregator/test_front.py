"""The enrollment port: what strangers get, and what they cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import pytest

from aggregator.front import FailedClaims, Front
from fedless.protocol.errors import Code, LocalError, PeerError

PEM = b"-----BEGIN CERTIFICATE-----\n"


class Inner:
    """Stands in for the Enrollment service: echoes, and notes who it sees."""

    def __init__(self) -> None:
        self.peers: list[int] = []
        self.server: asyncio.Server | None = None

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._echo, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[1])
        while data := await reader.read(4096):
            writer.write(b"<" + data + b">")
            await writer.drain()
        writer.close()


@pytest.fixture
async def inner() -> AsyncIterator[Inner]:
    made = Inner()
    yield made
    if made.server is not None:
        made.server.close()


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read(65536)
    writer.close()
    return answer


@pytest.fixture
async def port(inner: Inner) -> AsyncIterator[int]:
    front = Front(PEM, connections=8, per_address=3)
    yield await front.start("127.0.0.1", 0, await inner.start())
    await front.stop()


async def test_authority_is_served_with_the_time(port: int) -> None:
    head, _, body = (await ask(port, b"GET /ca.pem HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert body == PEM
    date = next(line for line in lines if line.startswith("Date: "))
    assert parsedate_to_datetime(date[6:]).year >= 2026


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /authority.key HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../ca.pem HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /ca.pem HTTP/1.1\r\n\r\n", b"404"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"x" * 5000, b"400"),
    ],
)
async def test_nothing_else_is_served(port: int, request_: bytes, status: bytes) -> None:
    assert (await ask(port, request_)).split(b" ")[1] == status


async def test_tls_is_passed_through_with_the_callers_address(inner: Inner) -> None:
    front = Front(PEM, connections=8, per_address=3)
    port = await front.start("127.0.0.1", 0, await inner.start())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01")
    answer = await reader.readexactly(1)
    assert answer == b"<"
    assert front.address_of(inner.peers[0]) == "127.0.0.1"
    assert front.address_of(1) == "loopback"
    writer.close()
    await front.stop()


async def test_one_address_cannot_take_all_connections(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    assert await ask(port, b"") == b"", "the fourth is closed at once"
    held[0][1].close()
    await held[0][1].wait_closed()
    answer = b""
    while not answer:  # its place is free as soon as the service has seen the end
        answer = await ask(port, b"GET /ca.pem HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    for _, writer in held[1:]:
        writer.close()


async def test_port_in_use_is_reported(port: int) -> None:
    with pytest.raises(LocalError) as caught:
        await Front(PEM, 1, 1).start("127.0.0.1", port, 1)
    assert caught.value.code is Code.PORT_IN_USE
    assert f"127.0.0.1:{port}" in caught.value.detail


def test_address_with_many_failed_claims_has_to_wait() -> None:
    now = 1_000_000
    failed = FailedClaims(3, lambda: now)
    for _ in range(3):
        failed.check("192.0.2.1")
        failed.add("192.0.2.1")
        now += 1000
    with pytest.raises(PeerError) as caught:
        failed.check("192.0.2.1")
    assert (caught.value.code, caught.value.retry_after_ms) == (Code.BUSY, 57_000)
    failed.check("192.0.2.2")
    now += 57_000
    failed.check("192.0.2.1")


def test_old_failures_are_forgotten() -> None:
    now = 0
    failed = FailedClaims(1, lambda: now)
    for index in range(100):
        failed.add(f"192.0.2.{index}")
        now += 10_000
    assert len(failed._failures) <= 7
