"""A real server that speaks S3 (moto's), as a child process on a free loopback port."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

START_S = 90  # it imports every service of AWS first
KEYS = 'access_key_id = "key"\nsecret_access_key = "secret"\nregion = "us-east-1"\n'
SCRIPT = """
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def variables(endpoint: str) -> dict[str, str]:
    """The same as variables of the environment, for those who have the platform's identity there."""
    return {
        "AWS_ENDPOINT": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


class ObjectServer:
    """One server; each bucket is new."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=file, stdin=subprocess.DEVNULL
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            pytest.fail(
                f"moto's server did not start (is moto[server] installed?): {log.read_text()[-2000:]}"
            )
        self.endpoint = f"http://127.0.0.1:{int(line)}"
        self._count = 0

    def bucket(self, folder: Path) -> tuple[str, Path]:
        """The URL of a prefix in a new bucket, and the file of options for it."""
        self._count += 1
        name = f"fleet-{self._count}-{time.time_ns()}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            assert answer.status == 200
        options = folder / "objects.toml"
        options.write_text(f'endpoint = "{self.endpoint}"\n{KEYS}')
        return f"s3://{name}/prefix", options

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def started(folder: Path) -> ObjectServer:
    """A server that answers."""
    return ObjectServer(folder / "moto.log")
