"""A small HTTP server for containers that are called with a POST: OpenFaaS behind its watchdog, Knative, any other.

`python -m cloud_adapters.handlers.server` listens on `PORT` (8080). Bodies may come with a length or chunked (OpenFaaS'
gateway sends them chunked). GET answers 200: readiness. `FEDLESS_TIMEOUT_S` is the time limit that it is deployed with.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast

from cloud_adapters.handlers.function import run, status_of
from edge_runtime.log import say
from fedless.protocol.cloud import PAYLOAD_BYTES_MAX

LIMIT = "FEDLESS_TIMEOUT_S"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:
        """An invocation."""
        body = self._body()
        if body is None:
            self._answer(413, {"error": f"at most {PAYLOAD_BYTES_MAX} bytes"}, close=True)
            return
        limit = os.environ.get(LIMIT, "")
        answer = run(body, float(limit) * 1000 if limit else None)
        self._answer(status_of(answer), answer)

    def do_GET(self) -> None:
        """Ready."""
        self._answer(200, {"ready": True})

    def log_message(self, *_: object) -> None:
        """Nothing: `function` writes one line for each invocation."""

    def _body(self) -> bytes | None:
        """What was sent; None if it is too long or malformed."""
        stream = cast("BinaryIO", self.rfile)
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                return _chunks(stream)
            length = int(self.headers.get("content-length", "0"))
        except ValueError:
            return None
        return stream.read(length) if 0 <= length <= PAYLOAD_BYTES_MAX else None

    def _answer(self, status: int, values: dict[str, Any], *, close: bool = False) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if close:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)


def _chunks(stream: BinaryIO) -> bytes | None:
    data = b""
    while size := int(stream.readline(64).split(b";")[0], 16):
        if not 0 < size <= PAYLOAD_BYTES_MAX - len(data):
            return None
        data += stream.read(size)
        stream.readline(64)
    stream.readline(64)
    return data


def main() -> None:
    """Serve until SIGTERM."""
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), Handler)
    server.daemon_threads = False  # an invocation under way is finished
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    say("function", "listening", port=server.server_port)
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
