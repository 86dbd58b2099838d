"""A small HTTP server for containers that are called with a POST: OpenFaaS behind its watchdog, Knative, any other.

Started by `server`, and by the helper's entry, with what they run. It listens on `PORT` (8080). Bodies may come with a
length or chunked (OpenFaaS' gateway sends them chunked). GET answers 200: readiness.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, ClassVar, cast

from cloud_adapters.handlers.invoked import left_ms, status_of
from edge_runtime.log import say
from fedless.protocol.cloud import PAYLOAD_BYTES_MAX

Run = Callable[[bytes, float | None], dict[str, Any]]
"""(the body, the time limit in ms) -> the answer's JSON values."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    bytes_max: ClassVar[int] = PAYLOAD_BYTES_MAX

    def run(self, body: bytes, left_ms: float | None) -> dict[str, Any]:
        """What a body is answered with; `listen` says it."""
        raise AssertionError(self, len(body), left_ms)

    def do_POST(self) -> None:
        """An invocation."""
        body = self._body()
        if body is None:
            self._answer(413, {"error": f"at most {self.bytes_max} bytes"}, close=True)
            return
        answer = self.run(body, left_ms())
        self._answer(status_of(answer), answer)

    def do_GET(self) -> None:
        """Ready."""
        self._answer(200, {"ready": True})

    def log_message(self, *_: object) -> None:
        """Nothing: what runs writes one line for each invocation."""

    def _body(self) -> bytes | None:
        """What was sent; None if it is too long or malformed."""
        stream = cast("BinaryIO", self.rfile)
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                return _chunks(stream, self.bytes_max)
            length = int(self.headers.get("content-length", "0"))
        except ValueError:
            return None
        return stream.read(length) if 0 <= length <= self.bytes_max else None

    def _answer(self, status: int, values: dict[str, Any], *, close: bool = False) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if close:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)


def _chunks(stream: BinaryIO, bytes_max: int) -> bytes | None:
    data = b""
    while size := int(stream.readline(64).split(b";")[0], 16):
        if not 0 < size <= bytes_max - len(data):
            return None
        data += stream.read(size)
        stream.readline(64)
    stream.readline(64)
    return data


def listen(called: Run, most_bytes: int) -> None:
    """Serve until SIGTERM: `called` for each body of at most so many bytes."""

    class Deployed(Handler):
        bytes_max = most_bytes

        def run(self, body: bytes, left_ms: float | None) -> dict[str, Any]:
            return called(body, left_ms)

    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), Deployed)
    server.daemon_threads = False  # an invocation under way is finished
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    say("function", "listening", port=server.server_port)
    server.serve_forever()
    server.server_close()
