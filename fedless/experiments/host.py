"""A small function host: many deployed functions behind one port, at most so many at a time.

Run by `peers` as a process of its own, with the FOLDER as its argument: the peer of an experiment's
`knative` clients, which may be hundreds. POST `/CLIENT` invokes the function whose deployment is `FOLDER/CLIENT.json`,
with the real called side (`cloud_adapters.handlers`): ticket, one-use claim, certificate, gRPC over mTLS, training.
Each invocation is a process of its own, forked from one that has the imports, with an empty scratch folder: nothing is
left of an earlier one, and its start counts as cold. A request waits for a place; then it is 429, and comes again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cloud_adapters.handlers.function import CloudFunction
from cloud_adapters.handlers.listening import Handler as Base
from edge_runtime.log import say
from fedless.experiments.shaping import variables
from fedless.protocol.cloud import deployment_from_json
from fedless.protocol.messages import ID

SETTINGS_FILE, PORT_FILE = "host.json", "port"
QUEUE_S = 240.0
GRACE_S = 5.0
"""Beyond the time limit, for an invocation to say what happened."""
_PRELOADED = [
    "cloud_adapters.handlers.function",
    "edge_runtime.masked",
    "fedless.experiments.host",
    "numpy",
    "grpc",
]
_PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Settings:
    """`concurrency`: invocations at a time; `timeout_s`: of one; `proxies`: the lines of clients that have one."""

    concurrency: int
    timeout_s: int
    proxies: Mapping[str, str]


def invocation(deployment: str, body: bytes, limit_ms: float, proxy: str, answer: Connection) -> None:
    """The process of one invocation: its answer goes into the pipe."""
    os.environ.update(variables(proxy))
    with tempfile.TemporaryDirectory(prefix="fedless-") as scratch:
        function = CloudFunction(deployment_from_json(deployment), Path(scratch))
        answer.send(function.run(body, limit_ms))
    answer.close()


class Host:
    """The functions of one folder."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._places = threading.BoundedSemaphore(settings.concurrency)

    def invoke(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON values: 404 no such function, 429 no place, 500 it ended without an answer."""
        path = self._folder / f"{name}.json"
        if not ID.fullmatch(name) or not path.is_file():
            return 404, {"error": "There is no such function."}
        if not self._places.acquire(timeout=QUEUE_S):
            return 429, {"error": "Every place is taken."}
        try:
            return self._run(path.read_text(encoding="utf-8"), body, self._settings.proxies.get(name, ""))
        finally:
            self._places.release()

    def _run(self, deployment: str, body: bytes, proxy: str) -> tuple[int, dict[str, Any]]:
        ours, theirs = _PROCESSES.Pipe(duplex=False)
        arguments = (deployment, body, 1000.0 * self._settings.timeout_s, proxy, theirs)
        process = _PROCESSES.Process(target=invocation, args=arguments, daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(self._settings.timeout_s + GRACE_S):
                return 504, {"error": "The time limit came first."}
            return 200, ours.recv()
        except EOFError:
            return 500, {"error": "The function ended without an answer."}
        finally:
            ours.close()
            process.join(GRACE_S)
            process.kill()  # nothing, if it has ended
            process.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def serve(folder: Path) -> None:
    """Serve until SIGTERM; `FOLDER/port` is written when it listens."""
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    host = Host(folder, Settings(**json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))))

    class Handler(Base):
        def do_POST(self) -> None:  # noqa: N802 - http.server's name
            """An invocation of the function that the path names."""
            body = self._body()
            if body is None:
                self._answer(413, {"error": "The payload is too long."}, close=True)
            else:
                self._answer(*host.invoke(self.path.strip("/"), body))

    server = _Server(("127.0.0.1", 0), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    (folder / PORT_FILE).write_text(f"{server.server_port}\n", encoding="ascii")
    say("host", "listening", port=server.server_port)
    server.serve_forever()
    server.server_close()


def main() -> None:
    """Serve the folder that the command line names."""
    serve(Path(sys.argv[1]))
