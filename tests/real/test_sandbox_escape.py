"""What a hostile function tries from inside its sandbox, cold and warm: each attempt is refused or bounded.

Every test ends with an innocent function that still works: an attack costs the others nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime import confine, sandbox
from edge_runtime.instance import Instance
from edge_runtime.jobs import Job, JobKind
from edge_runtime.warm import ForkServer
from fedless.protocol.errors import Code, FedlessError

LEVEL = sandbox.probe()
MEMORY_MB = 200
SCRATCH_MB = 4
MANIFEST = 'format = 1\n[function]\nname = "probe"\nversion = 1\nentry = "main:handle"\n'
pytestmark = pytest.mark.real


class Box:
    """One function version on a device, with a data mount, and a way to start instances of it."""

    def __init__(self, folder: Path, how: str, *, network: bool = False) -> None:
        self.function = folder / "functions" / "one"
        self.function.mkdir(parents=True)
        (self.function / "function.toml").write_text(MANIFEST)
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "own.txt").write_text("own data")
        self.how = how
        self.space = sandbox.Space((str(self.function), str(self.data)), SCRATCH_MB, network)
        self.level = sandbox.Level(confine.available()) if how == "bare" else LEVEL
        self.server = ForkServer.start(self.space) if how == "warm" else None

    def start(self) -> Instance:
        if self.server is not None:
            return self.server.instance()
        return Instance.start(space=None if self.how == "bare" else self.space)

    def call(self, body: str, event: object = None, *, timeout_ms: int = 20_000, cpu_s: int = 60) -> Any:
        """The answer of `handle(event, context)` with that body."""
        (self.function / "main.py").write_text(f"def handle(event, context):\n{body}")
        job = Job(
            JobKind.INVOKE, str(self.function), "", {"own": str(self.data)}, event=event,
            confinement=sandbox.confinement(self.space, MEMORY_MB, cpu_s, self.level),
        )  # fmt: skip
        with self.start() as instance:
            return json.loads(instance.run(job, timeout_ms=timeout_ms).payload)

    def refusal(self, body: str, event: object = None, **more: int) -> FedlessError:
        with pytest.raises(FedlessError) as caught:
            self.call(body, event, **more)
        return caught.value

    def works(self) -> bool:
        """The innocent function."""
        answer = self.call("    return open(context.data['own'] + '/own.txt').read() + event\n", " read")
        return bool(answer == "own data read")


@pytest.fixture(params=["cold", "warm", "bare"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    """`bare` is the weaker fallback: no bubblewrap, only what the instance does to itself."""
    if request.param == "bare" and not {sandbox.LANDLOCK, sandbox.SECCOMP} <= set(LEVEL.mechanisms):
        pytest.skip("without Landlock the fallback does not hide files, and says so")
    if request.param != "bare" and not LEVEL.full:
        pytest.skip(f"the sandbox is not whole here: {LEVEL}")
    made = Box(tmp_path, request.param)
    try:
        yield made
        assert made.works()
    finally:
        if made.server is not None:
            made.server.close()


READ = "    return open(event).read()\n"


def test_reading_the_device_key(box: Box, tmp_path: Path) -> None:
    key = tmp_path / "identity" / "key.pem"
    key.parent.mkdir()
    key.write_text("secret")
    assert box.refusal(READ, str(key)).code is Code.INSTANCE_FAILED


def test_reading_another_functions_files(box: Box, tmp_path: Path) -> None:
    other = tmp_path / "functions" / "two" / "model.tflite"
    other.parent.mkdir()
    other.write_text("theirs")
    assert box.refusal(READ, str(other)).code is Code.INSTANCE_FAILED


def test_reading_data_that_was_not_declared(box: Box, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("theirs")
    (box.data / "link").symlink_to(tmp_path / "other.csv")
    assert box.refusal(READ, str(tmp_path / "other.csv")).code is Code.INSTANCE_FAILED
    assert box.refusal(READ, str(box.data / "link")).code is Code.INSTANCE_FAILED


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/passwd", "/proc/1/environ", "/proc/kcore", "/dev/mem"])
def test_reading_the_system(box: Box, path: str) -> None:
    if box.how != "bare" and path == "/proc/1/environ":
        pytest.skip("process 1 is the sandbox's own there")
    assert box.refusal(READ, path).code is Code.INSTANCE_FAILED


def test_reading_the_parents_memory_and_environment(box: Box) -> None:
    for name in ("environ", "mem", "maps"):
        assert box.refusal(READ, f"/proc/{os.getpid()}/{name}").code is Code.INSTANCE_FAILED


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"])
def test_opening_a_socket(box: Box, family: str) -> None:
    body = "    import socket\n    socket.socket(getattr(socket, event))\n"
    refused = box.refusal(body, family)
    assert refused.code is Code.INSTANCE_FAILED
    assert "PermissionError" in refused.detail


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()", "os.execv('/bin/sh', ['sh'])", "os.posix_spawn('/bin/true', ['true'], {})",
        "__import__('subprocess').run(['true'])", "os.kill(1, 9)", "os.killpg(1, 9)", "os.kill(os.getppid(), 9)",
        "os.chroot('/')", "os.chown(event, 0, 0)", "os.chmod(event, 0o777)", "os.utime(event)",
        "__import__('resource').setrlimit(2, (-1, -1))", "os.memfd_create('x')", "__import__('mmap').mmap(-1, 1 << 20)",
        "__import__('signal').pidfd_send_signal(os.pidfd_open(os.getppid()), 9)", "os.nice(-5)",
    ],
)  # fmt: skip
def test_leaving_the_process(box: Box, attempt: str) -> None:
    refused = box.refusal(f"    import os\n    {attempt}\n    return 'done'\n", str(box.data / "own.txt"))
    assert refused.code is Code.INSTANCE_FAILED


def test_fork_bomb(box: Box) -> None:
    before = len(psutil.pids())
    body = "    import os\n    while True:\n        os.fork()\n"
    assert box.refusal(body).code is Code.INSTANCE_FAILED
    assert len(psutil.pids()) < before + 50


def test_thread_bomb(box: Box) -> None:
    body = "    import threading, time\n    while 1:\n        threading.Thread(target=time.sleep, args=[9]).start()\n"
    assert box.refusal(body).code in (Code.INSTANCE_FAILED, Code.INSTANCE_MEMORY)


def test_allocating_without_end(box: Box) -> None:
    body = "    kept = []\n    while True:\n        kept.append(bytearray(1 << 20))\n"
    refused = box.refusal(body)
    assert refused.code is Code.INSTANCE_MEMORY
    assert f"{MEMORY_MB} MB" in refused.detail


def test_filling_the_disk(box: Box) -> None:
    body = (
        "    import os\n    written = 0\n"
        "    with open((context.scratch or context.data['own']) + '/fill', 'wb', 0) as file:\n"
        "        while True:\n            written += file.write(bytes(1 << 16))\n"
    )
    assert box.refusal(body).code is Code.INSTANCE_FAILED


def test_filling_the_scratch_with_many_files(box: Box) -> None:
    body = (
        "    import os\n    folder = context.scratch or context.data['own']\n"
        "    for number in range(10**6):\n"
        "        open(f'{folder}/{number}', 'wb').write(bytes(1 << 16))\n"
    )
    assert box.refusal(body).code is Code.INSTANCE_FAILED
    assert [path.name for path in box.data.iterdir()] == ["own.txt"]


@pytest.mark.parametrize("place", ["/", "/dev", "/dev/shm", "/var/tmp", "/usr", "/proc/self"])
def test_writing_elsewhere(box: Box, place: str) -> None:
    body = "    open(event + '/left-behind', 'w').write('x')\n"
    assert box.refusal(body, place).code is Code.INSTANCE_FAILED
    assert not Path(place, "left-behind").exists()


def test_writing_to_the_bundle_or_the_data(box: Box) -> None:
    for target in (box.function / "function.toml", box.function / "new.py", box.data / "own.txt"):
        body = "    open(event, 'w').write('changed')\n"
        assert box.refusal(body, str(target)).code is Code.INSTANCE_FAILED
    assert (box.function / "function.toml").read_text() == MANIFEST
    assert (box.data / "own.txt").read_text() == "own data"
    assert not (box.function / "new.py").exists()


def test_ignoring_sigterm_and_hanging(box: Box) -> None:
    body = (
        "    import signal, time\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "        signal.signal(number, signal.SIG_IGN)\n"
        "    while True:\n        time.sleep(1)\n"
    )
    since = time.monotonic()
    assert box.refusal(body, timeout_ms=700).code is Code.INSTANCE_TIMEOUT
    assert time.monotonic() - since < 60


def test_burning_the_processor(box: Box) -> None:
    assert box.refusal("    while True:\n        pass\n", cpu_s=1).code is not Code.INSTANCE_TIMEOUT


def test_printing_without_end(box: Box) -> None:
    body = "    for number in range(20000):\n        print('x' * 1000)\n    return 'done'\n"
    assert box.call(body) == "done"


def test_answering_nonsense(box: Box) -> None:
    assert box.refusal("    return object()\n").code is Code.INSTANCE_BAD_RESULT
    assert box.refusal("    return 'x' * (2 << 20)\n").code is Code.INSTANCE_BAD_RESULT
    assert box.refusal("    return float('nan')\n").code is Code.INSTANCE_BAD_RESULT


def test_speaking_the_links_protocol_itself(box: Box) -> None:
    body = (
        "    import os\n"
        "    for number in range(3, 64):\n"
        "        try:\n            os.write(number, b'\\x7f\\xff\\xff\\xff' * 100)\n"
        "        except OSError:\n            pass\n"
        "    return 'done'\n"
    )
    assert box.refusal(body).code in (Code.INSTANCE_BAD_RESULT, Code.INSTANCE_FAILED)


def test_nothing_is_left_of_an_invocation(box: Box) -> None:
    if box.how == "bare":
        pytest.skip("it has no scratch")
    assert box.call("    open('/tmp/mine', 'w').write('x')\n    return 'done'\n") == "done"
    left = box.call("    import os\n    return os.listdir('/tmp')\n")
    assert "mine" not in left


def test_dying_by_a_signal(box: Box) -> None:
    body = "    import os, signal\n    signal.raise_signal(signal.SIGSEGV)\n"
    refused = box.refusal(body)
    assert refused.code is Code.INSTANCE_FAILED
    assert signal.Signals.SIGSEGV.name in refused.detail


@pytest.mark.skipif(not LEVEL.full, reason=f"the sandbox is not whole here: {LEVEL}")
def test_declared_network_reaches_loopback_peers_outside(tmp_path: Path) -> None:
    """The switch works in both directions: what is declared is given."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        body = "    import socket\n    socket.create_connection(('127.0.0.1', event), 5).sendall(b'hi')\n"
        assert Box(tmp_path, "cold", network=True).call(body, server.getsockname()[1]) is None
        with server.accept()[0] as connection:
            assert connection.recv(2) == b"hi"
