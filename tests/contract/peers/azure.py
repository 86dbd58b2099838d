"""Azure: the real azure-functions library, in a host of ours.

The host does what Functions' host does for an HTTP trigger:
`x-functions-key`, 404 for other routes, `HttpRequest` in, `HttpResponse` out. The worker itself needs Python 3.13.

Run as `python -m tests.contract.peers.azure PORT KEY`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.contract.peers.process import Peer, free_port, needed, start

KEY = "function-key-of-the-test"


def host(folder: Path, deployed: Mapping[str, str]) -> Peer:
    python = needed(".venv-clouds/bin/python")
    port = free_port()
    process = start([python, "-m", "tests.contract.peers.azure", str(port), KEY], port, folder, deployed)
    for name, text in (("key", KEY), ("wrong", "another key")):
        (folder / name).write_text(text + "\n")
    url = f"http://127.0.0.1:{port}/api/fedless"
    settings = {"memory_mb": 1024, "timeout_s": 60, "url": url, "key_file": str(folder / "key")}
    return Peer(
        "azure", settings, [process], unknown={**settings, "url": f"http://127.0.0.1:{port}/api/other"},
        denied={**settings, "key_file": str(folder / "wrong")},
    )  # fmt: skip


def main(port: int, key: str) -> None:
    import azure.functions as func

    from cloud_adapters.handlers.azure import app

    functions = {
        str(getattr(binding, "route", None)): function.get_user_function()
        for function in app.get_functions()
        for binding in function.get_bindings()
        if hasattr(binding, "route")
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            entry = functions.get(self.path.removeprefix("/api/"))
            if entry is None:
                self.answer(404, b"")
            elif self.headers.get("x-functions-key") != key:
                self.answer(401, b"")
            else:
                headers = dict(self.headers.items())
                reply: Any = entry(func.HttpRequest("POST", self.path, headers=headers, body=body))
                self.answer(reply.status_code, reply.get_body(), reply.mimetype)

        def answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
