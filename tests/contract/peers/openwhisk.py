"""OpenWhisk, small, written from its documented REST API and action contract (the real one needs Docker).

Basic authentication, 404 for unknown actions, 202 with an activation id, 404 for an activation that still runs, then
its record with duration and annotations. Parameters over 1 MB are refused. The action is our real entry.

Run as `python -m tests.contract.peers.openwhisk PORT USER:KEY`.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.contract.peers.process import PYTHON, Peer, free_port, start

AUTH = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:example"
PREFIX = "/api/v1/namespaces/_/"


def controller(folder: Path, deployed: Mapping[str, str]) -> Peer:
    port = free_port()
    process = start([PYTHON, "-m", "tests.contract.peers.openwhisk", str(port), AUTH], port, folder, deployed)
    for name, text in (("auth", AUTH), ("wrong", "23bc46b1:wrong")):
        (folder / name).write_text(text)
    settings = {"memory_mb": 512, "timeout_s": 60, "api_host": f"http://127.0.0.1:{port}", "action": "fedless",
                "auth_file": str(folder / "auth")}  # fmt: skip
    return Peer(
        "openwhisk", settings, [process], measures=True, unknown={**settings, "action": "other"},
        denied={**settings, "auth_file": str(folder / "wrong")},
    )  # fmt: skip


def main(port: int, auth: str) -> None:
    records: dict[str, dict[str, Any] | None] = {}
    wanted = "Basic " + base64.b64encode(auth.encode()).decode()
    begun = time.monotonic()
    from cloud_adapters.handlers.openwhisk import DEADLINE
    from cloud_adapters.handlers.openwhisk import main as action

    init_ms = (time.monotonic() - begun) * 1000

    def activate(activation: str, arguments: dict[str, Any]) -> None:
        os.environ[DEADLINE] = str(round((time.time() + 60) * 1000))
        start_s = time.monotonic()
        try:
            response = {"result": action(arguments), "success": True, "status": "success"}
        except Exception as error:  # noqa: BLE001 - as the proxy does
            response = {"result": {"error": str(error)}, "success": False, "status": "action developer error"}
        records[activation] = {
            "activationId": activation, "response": response, "duration": round((time.monotonic() - start_s) * 1000),
            "annotations": [{"key": "initTime", "value": round(init_ms)}, {"key": "waitTime", "value": 3},
                            {"key": "limits", "value": {"memory": 512, "timeout": 60000}}],
        }  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            body = self.rfile.read(size)
            if self.headers.get("authorization") != wanted:
                self.answer(401, {"error": "The supplied authentication is invalid."})
            elif self.path != f"{PREFIX}actions/fedless?blocking=false":
                self.answer(404, {"error": "The requested resource does not exist."})
            elif size > 1 << 20:
                self.answer(413, {"error": "Request larger than allowed."})
            else:
                activation = uuid.uuid4().hex
                records[activation] = None
                threading.Thread(target=activate, args=(activation, json.loads(body))).start()
                self.answer(202, {"activationId": activation})

        def do_GET(self) -> None:
            record = records.get(self.path.removeprefix(f"{PREFIX}activations/"))
            self.answer(200 if record else 404, record or {"error": "The requested resource does not exist."})

        def answer(self, status: int, values: dict[str, Any]) -> None:
            body = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
