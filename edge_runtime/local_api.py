"""Functions for the device's own programs: HTTP on a Unix socket, without any network.

The agent starts it as `python -m edge_runtime.local_api --state DIR` with the listening socket on standard input when
somebody calls, and waits for its end; it leaves when nobody has called for a while. Who calls is known from the kernel
(SO_PEERCRED): only the users that edge.toml lists, root, and the agent's own user may, each so many times a minute.

=========================== =====================================================================
GET /functions              the functions that are here, with the version that serves
POST /functions/NAME        invoke; the body is the event (JSON), the answer's body is what it returned
=========================== =====================================================================

A refusal is a JSON object with `code`, `detail` and `fix`. A model's function infers: `{"inputs": {NAME: rows}}` gives
`{"outputs": rows}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

from edge_runtime.config import FILE, EdgeConfig, load
from edge_runtime.functions import Functions
from edge_runtime.log import say
from edge_runtime.pool import Pool
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError

MAX_BODY_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")
_STATUS = {
    Code.CALLER_REFUSED: 403, Code.UNKNOWN_TASK: 404, Code.UNKNOWN_BLOB: 409, Code.QUEUE_FULL: 429,
    Code.BUSY: 429, Code.MALFORMED: 400, Code.DATA_SHAPE: 400, Code.DATA_RANGE: 400, Code.DATA_MISSING: 400,
    Code.DATA_DTYPE: 400, Code.DATA_EMPTY: 400, Code.DATA_NOT_FINITE: 400, Code.INSTANCE_TIMEOUT: 504,
}  # fmt: skip
_READ_S = 10.0
_TICK_S = 0.25
_PREFIX = "/functions"


class Callers:
    """Who may call, and how often: at most `per_minute` calls of one user in any minute."""

    def __init__(self, users: Sequence[str], per_minute: int) -> None:
        self._allowed = {0, os.getuid(), *(_uid(user) for user in users)}
        self._per_minute = per_minute
        self._recent: dict[int, list[float]] = {}
        self._lock = threading.Lock()

    def admit(self, uid: int, now: float) -> None:
        """Raises `PeerError` CALLER_REFUSED or BUSY."""
        if uid not in self._allowed:
            raise PeerError(
                Code.CALLER_REFUSED,
                f"User {uid} is not listed.",
                fix="Add the user to `users` of [local] in edge.toml.",
            )
        with self._lock:
            recent = [moment for moment in self._recent.get(uid, []) if now - moment < 60]  # noqa: PLR2004
            if len(recent) >= self._per_minute:
                wait_ms = int((60 - (now - recent[0])) * 1000)
                raise PeerError(Code.BUSY, f"{self._per_minute} calls a minute.", retry_after_ms=wait_ms)
            self._recent[uid] = [*recent, now]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The agent's listening socket, served by this process."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, config: EdgeConfig, pool: Pool) -> None:
        super().__init__(cast("str", listener.getsockname()), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.pool = pool
        self.functions = pool.functions
        self.callers = Callers(config.local.users, config.local.per_minute)
        self.active = 0
        self.last = time.monotonic()
        self._counting = threading.Lock()

    def serve(self, quiet_s: float) -> None:
        """Until nobody has called for `quiet_s`."""
        self.timeout = _TICK_S
        while self.active or time.monotonic() - self.last < quiet_s:
            self.handle_request()
            self.pool.tick()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (socketserver's)
        """In a thread of its own."""
        with self._counting:
            self.active += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """The caller has its answer."""
        super().shutdown_request(request)
        with self._counting:
            self.active -= 1
            self.last = time.monotonic()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _READ_S
    _body = b""

    def do_GET(self) -> None:
        """`GET /functions`."""
        self._answer(self._list)

    def do_POST(self) -> None:
        """`POST /functions/NAME`."""
        self._answer(self._invoke)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Lines of our own instead."""

    def address_string(self) -> str:
        """Unix sockets have none."""
        return "local"

    def _answer(self, action: Any) -> None:  # noqa: ANN401
        uid = caller(self.connection)
        try:
            self._body = (
                self._read()
            )  # before any refusal: a client that still writes would not read the answer
            self.server.callers.admit(uid, time.monotonic())
            status, body = 200, action(uid)
        except FedlessError as error:
            status = _STATUS.get(error.code, 500)
            body = {"code": error.code.value, "detail": error.detail, "fix": error.fix}
            say("local", "refused", code=error.code.value, uid=uid)
        data = json.dumps(body).encode()
        with contextlib.suppress(OSError):  # the caller may be gone
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _list(self, uid: int) -> object:
        del uid
        if self.path.rstrip("/") != _PREFIX:
            raise PeerError(Code.UNKNOWN_TASK, f"Expected GET {_PREFIX}.")
        every = self.server.functions.versions()
        return [
            {"name": item.name, "version": item.version, "entry": item.entry, "model": item.model}
            for item in every
            if item == self.server.functions.current(item.name)
        ]

    def _invoke(self, uid: int) -> object:
        prefix, _, name = self.path.rpartition("/")
        if prefix != _PREFIX or not name:
            raise PeerError(Code.UNKNOWN_TASK, f"Expected POST {_PREFIX}/NAME.")
        answer = self.server.pool.invoke(name, self._event(), str(uid))
        say("local", "invoked", function=name, version=answer.version, start=answer.start, ms=answer.total_ms)
        return answer.value

    def _read(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise PeerError(Code.MALFORMED, f"Expected a body of at most {MAX_BODY_BYTES} bytes.")
        try:
            return self.rfile.read(int(length))
        except OSError:
            raise PeerError(Code.MALFORMED, "The body did not come.") from None

    def _event(self) -> object:
        try:
            return json.loads(self._body or b"null")
        except (ValueError, RecursionError):
            raise PeerError(Code.MALFORMED, "The body is not JSON.") from None


def caller(connection: socket.socket) -> int:
    """The user number of the process at the other end."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(told)[1])


def _uid(user: str) -> int:
    """Raises `LocalError(CONFIG_INVALID)` for a user that this device does not have."""
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise LocalError(Code.CONFIG_INVALID, f"[local] users: there is no user {user}.") from None


def serve(state: Path, listener: socket.socket) -> int:
    """Serve until it is quiet; the exit status."""
    try:
        config = load(state / FILE)
        functions = Functions(state)
        pool = Pool(state, config, functions)
        with contextlib.closing(functions), contextlib.closing(pool):
            Server(listener, config, pool).serve(config.warm.keep_s if config.warm.memory_mb else 1.0)
    except FedlessError as error:
        say("local", "failed", code=error.code.value, why=str(error))
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m edge_runtime.local_api --state DIR`, the listening socket on standard input."""
    _, state = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with socket.socket(fileno=os.dup(0)) as listener:
        return serve(Path(state), listener)


if __name__ == "__main__":
    sys.exit(main())
