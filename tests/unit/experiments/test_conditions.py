"""Slow lines and slow processors: nothing comes too soon, nobody else is reached, everything runs on at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedless.experiments.groups import Network
from fedless.experiments.pacing import Pacer, families
from fedless.experiments.shaping import HOST, PORTS_FILE, Line, Pace

LATENCY_S = 0.06


def test_bytes_leave_as_fast_as_the_line_and_no_faster() -> None:
    pace = Pace(8.0)  # 1 MB/s
    assert pace.due(500_000, now=10.0) == pytest.approx(10.5)
    assert pace.due(500_000, now=10.1) == pytest.approx(11.0)
    assert pace.due(1_000, now=20.0) == pytest.approx(20.001)
    assert Pace(0.0).due(10**9, now=5.0) == 5.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def through(line: Line, target: str, payload: bytes) -> tuple[bytes, bytes, float]:
    """The proxy's answer, what came back, and after how many seconds."""
    server = await asyncio.start_server(echo, HOST, 0)
    proxy = await asyncio.start_server(line.serve, HOST, 0)
    async with server, proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.sockets[0].getsockname()[1])
        port = server.sockets[0].getsockname()[1]
        writer.write(f"CONNECT {target.format(port=port)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await reader.readline()
        begun = time.monotonic()
        got = b""
        with contextlib.suppress(OSError):
            if answer:
                await reader.readuntil(b"\r\n")
                writer.write(payload)
                writer.write_eof()
                got = await reader.read(-1)
        took = time.monotonic() - begun
        writer.close()
        return answer, got, took


async def test_a_line_delays_and_paces_what_goes_through_it_and_changes_nothing() -> None:
    payload = bytes(range(256)) * 400  # 102,400 bytes
    line = Line.of(Network(1000 * LATENCY_S, down_mbit_s=8.0, up_mbit_s=8.0))
    answer, got, took = await through(line, "127.0.0.1:{port}", payload)
    assert answer.split()[1] == b"200"
    assert got == payload
    assert took >= 2 * LATENCY_S + 0.1024  # both ways late; the slower of two directions that overlap


async def test_an_unshaped_line_is_a_plain_proxy() -> None:
    _, got, _ = await through(Line.of(Network()), "localhost:{port}", b"abc")
    assert got == b"abc"


@pytest.mark.parametrize("target", ["192.0.2.1:443", "example.com:443", "127.0.0.1.example.com:1"])
async def test_other_machines_are_not_reached_through_a_line(target: str) -> None:
    answer, _, _ = await through(Line.of(Network()), target, b"")
    assert answer == b""


async def test_a_request_that_is_no_tunnel_ends_the_connection() -> None:
    proxy = await asyncio.start_server(Line.of(Network()).serve, HOST, 0)
    async with proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.sockets[0].getsockname()[1])
        writer.write(b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n")
        assert await reader.read(-1) == b""
        writer.close()


def test_the_process_of_the_lines_tells_their_ports_and_ends_when_told(tmp_path: Path) -> None:
    lines = tmp_path / "lines.json"
    lines.write_text(json.dumps({"a-1": {"latency_ms": 5}, "b-2": {"up_mbit_s": 1}}))
    process = subprocess.Popen([sys.executable, "-m", "fedless.experiments.shaping", str(lines)])
    try:
        ready = tmp_path / PORTS_FILE
        end = time.monotonic() + 30
        while not (ready.is_file() and ready.read_text().endswith("\n")):
            assert time.monotonic() < end
            time.sleep(0.02)
        ports = json.loads(ready.read_text())
        assert ports.keys() == {"a-1", "b-2"}
        assert len(set(ports.values())) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


BUSY = "import subprocess, sys; c = [sys.executable, '-c', 'while True: pass']; subprocess.Popen(c).wait()"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child that never rests."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    end = time.monotonic() + 30
    while len(families([process.pid])) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield process
    for pid in families([process.pid]):
        psutil.Process(pid).kill()
    process.wait()


def _share(process: psutil.Process) -> float:
    """How much of a processor it uses for a second."""
    before, begun = process.cpu_times(), time.monotonic()
    time.sleep(1.0)
    after, took = process.cpu_times(), time.monotonic() - begun
    return (after.user + after.system - before.user - before.system) / took


def test_a_slowed_family_gets_its_share_of_the_time_and_runs_on_afterwards(
    busy: subprocess.Popen[bytes],
) -> None:
    (child,) = psutil.Process(busy.pid).children()
    with Pacer(
        5.0, lambda: [busy.pid]
    ):  # a fifth; looked at often, since a busy machine may hold the pacer up
        shares = (_share(child) for _ in range(30))
        assert any(share <= 0.4 for share in shares)
    before = child.cpu_times()
    end = time.monotonic() + 30
    while child.cpu_times().user <= before.user:
        assert time.monotonic() < end, "it is stopped still"
        time.sleep(0.05)


def test_a_pacer_of_processes_that_are_gone_does_no_harm() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Pacer(2.0, lambda: [gone.pid]):
        time.sleep(0.2)
