"""The parent's side of an instance: start the child process, give it one job, read its events, end it.

Called by the participant, and by the aggregator for central evaluation. `Instance.start` may be called before
the job is known: the child imports numpy and the runtime meanwhile, which is most of a cold start; and `prepare` when
its place is known: the child locks itself in, reads its data and loads its graph. An
instance takes one job and then ends; whatever it does, it ends with its whole process group by the deadline,
and what it says is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_runtime import sandbox
from edge_runtime.jobs import LENGTH, MAX_FRAME_BYTES, Job, Outcome, Place, frame
from edge_runtime.process import Child, Process, start_of
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError

OnEvent = Callable[[Mapping[str, Any]], None]
MAX_OUTPUT_BYTES = 16 * 1024
MAX_PAYLOAD_BYTES = 1 << 30
_CHUNK = 1 << 18
_SPEAKS_S = 30.0
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
_OWN_FAULTS = {Code.NOT_INSTALLED, Code.CONFIG_INVALID, Code.DISK_FULL}


class Instance:
    """One process that serves one job (`trainer`), in its own process group. A context manager: leaving it ends it."""

    def __init__(self, process: Process, link: socket.socket) -> None:
        self._process = process
        self._link = link
        self._output = bytearray()
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._used = self._running = False
        self._place: Place | None = None
        self.over: Callable[[], None] = _nothing
        """Called once, when it has ended."""
        self._started_ms = time.monotonic() * 1000
        self.ran_ms = 0.0
        """How long `run` took, whatever came of it."""

    @classmethod
    def start(cls, python: str = sys.executable, space: sandbox.Space | None = None) -> Instance:
        """A cold start: an environment empty but for paths, locale and one thread per library.

        `python` is the interpreter; `space` is what is visible in a sandbox of its own (None: no namespaces),
        which ends with the calling thread. Raises `LocalError(INSTANCE_FAILED)` if it cannot be started.
        """
        return cls(*child(start_of("edge_runtime.trainer", python), space))

    @property
    def how(self) -> str:
        """`cold` or `warm`."""
        return self._process.start

    @property
    def pid(self) -> int:
        """A cold instance's process id, which is also its process group; 0 for a warm one, whose server knows it."""
        return self._process.pid if isinstance(self._process, Child) else 0

    def speaks(self) -> bool:
        """Whether it is there: it says `ready` soon after its start; one whose fork server was killed never does."""
        readable, _, _ = select.select([self._link], [], [], _SPEAKS_S)
        try:
            return bool(readable) and bool(self._link.recv(1, socket.MSG_PEEK))
        except ConnectionResetError:
            return False

    def prepare(self, place: Place) -> None:
        """Tell the child where its job will be, before the job is known. What goes wrong there, `run` raises."""
        self._place = place
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._link.sendall(frame(place.to_json()))

    def fits(self, place: Place | None) -> bool:
        """Whether a job at that place can be run: no other was prepared."""
        return self._place is None or self._place == place

    def run(self, job: Job, *, timeout_ms: int, on_event: OnEvent | None = None) -> Outcome:
        """Give the child its job and wait for the outcome, at most `timeout_ms`; then the instance is over.

        `on_event` gets every event of `jobs.py` as it comes (on the calling thread). Raises `FedlessError`:
        what the child said (DATA_*, MODEL_NOT_PORTABLE, NOT_FINITE, ...), INSTANCE_TIMEOUT, INSTANCE_MEMORY,
        INSTANCE_FAILED (it died) or INSTANCE_BAD_RESULT (it broke the protocol).
        """
        with self._lock:
            if self._used:
                raise LocalError(Code.WRONG_STATE, "An instance takes one job.")
            if not self.fits(job.place):
                raise LocalError(Code.WRONG_STATE, "The instance was prepared for another job.")
            self._used = self._running = True
        since = time.monotonic()
        try:
            return self._converse(job, since + timeout_ms / 1000, timeout_ms, on_event)
        finally:
            self.ran_ms = (time.monotonic() - since) * 1000
            with self._lock:
                self._running = False
            self.close()

    def kill(self) -> None:
        """End the whole process group. For other threads, too: `run` then raises INSTANCE_MEMORY or _FAILED."""
        self._process.kill()

    def close(self) -> None:
        """End the process group and reap the child; again is fine. A `run` in another thread does the rest."""
        self._process.kill()
        with self._lock:
            self._used = True
            if self._running:  # it reads from what would be closed here
                return
        self._process.close()
        self._link.close()
        over, self.over = self.over, _nothing
        over()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    def _converse(self, job: Job, deadline: float, timeout_ms: int, on_event: OnEvent | None) -> Outcome:
        sent_ms = time.monotonic() * 1000
        times: dict[str, float] = {}
        wall_ms = 0
        try:
            self._send(replace(job, timeout_ms=timeout_ms))
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None
        for piece in self._pieces(deadline, timeout_ms):
            self._buffer += piece
            for event in self._events():
                name = event.get("event")
                if on_event is not None:
                    on_event(event)
                if name == "ready":
                    times["ready_ms"] = _number(event, "monotonic_ms") - self._started_ms
                elif name == "first_step":
                    times["first_step_ms"] = _number(event, "monotonic_ms") - sent_ms
                    wall_ms = round(_number(event, "wall_ms"))
                elif name == "failed":
                    raise _failure(event)
                elif name == "done":
                    payload = self._payload(event, deadline, timeout_ms)
                    times["total_ms"] = time.monotonic() * 1000 - sent_ms
                    return _outcome(event, times, wall_ms, payload)
        raise self._died()

    def _send(self, job: Job) -> None:
        """The job, and with it its files as open descriptors: a sandbox does not see our cache."""
        with contextlib.ExitStack() as opened:
            descriptors: list[int] = []
            for path in filter(None, job.files):
                try:
                    descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                except OSError as error:
                    raise LocalError(Code.INSTANCE_FAILED, f"The model cannot be read: {error}.") from None
                opened.callback(os.close, descriptors[-1])
            socket.send_fds(self._link, [frame(job.to_json())], descriptors)

    def _events(self) -> Iterator[Mapping[str, Any]]:
        """Complete frames at the head of the buffer; stops behind `done`, whose payload follows raw."""
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise PeerError(Code.INSTANCE_BAD_RESULT, f"An event of {length} bytes.")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            try:
                event = json.loads(body)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                raise PeerError(Code.INSTANCE_BAD_RESULT, "An event is not a JSON object.")
            yield event

    def _payload(self, event: Mapping[str, Any], deadline: float, timeout_ms: int) -> bytearray:
        size = event.get("payload_bytes")
        if not isinstance(size, int) or not 0 <= size <= MAX_PAYLOAD_BYTES:
            raise PeerError(Code.INSTANCE_BAD_RESULT, f"A payload of {size} bytes.")
        payload, self._buffer = self._buffer, bytearray()
        if len(payload) < size:
            for piece in self._pieces(deadline, timeout_ms):
                payload += piece
                if len(payload) >= size:
                    break
        if len(payload) != size:
            raise PeerError(
                Code.INSTANCE_BAD_RESULT, f"A payload of {len(payload)} bytes; {size} were announced."
            )
        return payload

    def _pieces(self, deadline: float, timeout_ms: int) -> Iterator[bytes]:
        """Bytes from the child until it closes its end; its output is drained beside, and its tail kept."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ)
            selector.register(self._process.output, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerError(Code.INSTANCE_TIMEOUT, f"It was stopped after {timeout_ms} ms.")
                for key, _ in selector.select(left):
                    if key.fileobj is self._link:
                        try:
                            piece = self._link.recv(_CHUNK)
                        except ConnectionResetError:  # it died with our job unread
                            return
                        if not piece:
                            return
                        yield piece
                    elif not self._drain():
                        selector.unregister(self._process.output)

    def _drain(self) -> bool:
        """Take some of the child's output; False at its end."""
        piece = os.read(self._process.output, _CHUNK)
        self._output += piece
        del self._output[:-MAX_OUTPUT_BYTES]
        return bool(piece)

    def _died(self) -> FedlessError:
        """Why the child closed its end without an answer."""
        status = self._process.exit_status()
        if status is None:
            return PeerError(Code.INSTANCE_FAILED, "It closed its connection without an answer.")
        os.set_blocking(self._process.output, False)
        with contextlib.suppress(BlockingIOError):  # a grandchild may hold the pipe open
            self._drain()
        said = self._output.decode(errors="replace").strip()[-500:]
        if status == -signal.SIGKILL or "bad_alloc" in said or "MemoryError" in said:
            return PeerError(Code.INSTANCE_MEMORY, "It was stopped for want of memory.")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return PeerError(Code.INSTANCE_FAILED, f"It ended with {how}. {said}".strip())


def invoke(
    job: Job, *, timeout_ms: int, on_event: OnEvent | None = None, python: str = sys.executable
) -> Outcome:
    """A cold start: a new instance for this one job. Errors as `Instance.start` and `Instance.run`."""
    with Instance.start(python) as instance:
        return instance.run(job, timeout_ms=timeout_ms, on_event=on_event)


def _nothing() -> None:
    """Nobody waits for an instance's end."""


def child(
    command: Sequence[str],
    space: sandbox.Space | None,
    kind: int = socket.SOCK_STREAM,
    *,
    ends_with_parent: bool = True,
) -> tuple[Child, socket.socket]:
    """Start a process of ours, which finds its end of a socket at `--fd`; ours is returned with it.

    `ends_with_parent` as in `sandbox.command`. Raises `LocalError(INSTANCE_FAILED)`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with theirs:
        inner = [*command, "--fd", str(theirs.fileno())]
        if space is not None:
            inner = sandbox.command(inner, space, ends_with_parent=ends_with_parent)
        try:
            return Child(inner, theirs.fileno(), environment()), ours
        except LocalError:
            ours.close()
            raise


def environment() -> dict[str, str]:
    """A child's environment: paths, locale, one thread per library; no more, since ours may hold secrets."""
    root = str(Path(__file__).resolve().parents[1])
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return kept | single | {"PYTHONPATH": os.pathsep.join(paths)}


def _failure(event: Mapping[str, Any]) -> FedlessError:
    code = Code.of(str(event.get("code")))
    detail, fix = str(event.get("detail", "")), str(event.get("fix", ""))
    own = code in _OWN_FAULTS or code.value.startswith("data_")
    return LocalError(code, detail, fix=fix) if own else PeerError(code, detail, fix=fix)


def _outcome(event: Mapping[str, Any], times: dict[str, float], wall_ms: int, payload: bytearray) -> Outcome:
    try:
        return Outcome(
            examples=int(event["examples"]),
            steps=int(event["steps"]),
            sums={str(name): float(value) for name, value in event["sums"].items()},
            timings_ms={name: float(value) for name, value in event["timings_ms"].items()} | times,
            peak_rss_mb=float(event["peak_rss_mb"]),
            first_step_wall_ms=wall_ms,
            shape=tuple(int(size) for size in event["shape"]),
            payload=payload,
            unfinished=event.get("unfinished") is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PeerError(Code.INSTANCE_BAD_RESULT, "The answer lacks a field.") from None


def _number(event: Mapping[str, Any], name: str) -> float:
    value = event.get(name)
    if not isinstance(value, int | float):
        raise PeerError(Code.INSTANCE_BAD_RESULT, f"An event without {name}.")
    return float(value)
