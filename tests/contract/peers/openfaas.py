"""OpenFaaS' gateway, small, written from its documentation (the real one needs faasd or Kubernetes).

`/function/NAME` forwards chunked bodies and adds `X-Call-Id` and `X-Duration-Seconds`; `/async-function/NAME` answers
202 and calls back. Behind it is our real container server.

Run as `python -m tests.contract.peers.openfaas PORT UPSTREAM USER:PASSWORD`.
"""

from __future__ import annotations

import base64
import http.client
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.contract.peers.process import PYTHON, Peer, free_port, start

AUTH = "admin:example"


def gateway(folder: Path, deployed: Mapping[str, str], mode: str) -> Peer:
    port, upstream, listen = free_port(), free_port(), free_port()
    environment = {**deployed, "PORT": str(upstream), "FEDLESS_TIMEOUT_S": "60"}
    processes = [
        start([PYTHON, "-m", "cloud_adapters.handlers.openfaas"], upstream, folder, environment),
        start(
            [PYTHON, "-m", "tests.contract.peers.openfaas", str(port), str(upstream), AUTH], port, folder, {}
        ),
    ]
    for name, text in (("auth", AUTH), ("wrong", "admin:wrong")):
        (folder / name).write_text(text)
    settings = {"memory_mb": 1024, "timeout_s": 60, "gateway": f"http://127.0.0.1:{port}", "function": "fedless",
                "mode": mode, "basic_auth_file": str(folder / "auth")}  # fmt: skip
    if mode == "async":
        settings |= {"listen": f"127.0.0.1:{listen}", "callback_url": f"http://127.0.0.1:{listen}/callback"}
    return Peer(
        "openfaas", settings, processes, measures=True, unknown={**settings, "function": "other"},
        denied={**settings, "basic_auth_file": str(folder / "wrong")},
    )  # fmt: skip


def forward(port: int, body: bytes) -> tuple[int, bytes, str]:
    """Chunked, as Go's proxy sends a body of unknown length."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun = time.monotonic()
    connection.request("POST", "/", iter([body[:10], body[10:]]), encode_chunked=True,
                       headers={"transfer-encoding": "chunked"})  # fmt: skip
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply.status, data, f"{time.monotonic() - begun:.6f}"


def call_back(url: str, port: int, body: bytes, call_id: str) -> None:
    status, data, seconds = forward(port, body)
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=30)
    headers = {"X-Call-Id": call_id, "X-Function-Status": str(status), "X-Duration-Seconds": seconds}
    connection.request("POST", place.path, data, headers)
    connection.getresponse().read()
    connection.close()


def main(port: int, upstream: int, auth: str) -> None:
    wanted = "Basic " + base64.b64encode(auth.encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body, call_id = self.rfile.read(int(self.headers["content-length"])), str(uuid.uuid4())
            url = self.headers.get("x-callback-url", "")
            if self.headers.get("authorization") != wanted:
                self.answer(401, b"")
            elif self.path == "/function/fedless":
                status, data, seconds = forward(upstream, body)
                self.answer(status, data, {"X-Call-Id": call_id, "X-Duration-Seconds": seconds})
            elif self.path == "/async-function/fedless":
                threading.Thread(target=call_back, args=(url, upstream, body, call_id)).start()
                self.answer(202, b"", {"X-Call-Id": call_id})
            else:
                self.answer(404, b"error finding function other.openfaas-fn")

        def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
