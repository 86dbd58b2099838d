"""AWS Lambda twice: the real Runtime Interface Emulator, and serverless-offline.

The first, with awslambdaric, has the runtime's contract; the second the API's: events, unknown functions, limits. Both
come without an account and without Docker.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.contract.peers.process import Peer, free_port, needed, start

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "example"}
CONFIG = """\
service: fedless
frameworkVersion: "*"
provider: {{name: aws, runtime: python3.11, region: us-east-1, timeout: 60}}
plugins: [serverless-offline]
functions: {{fn: {{handler: entry.handler}}}}
custom:
  serverless-offline: {{host: 127.0.0.1, httpPort: {http}, lambdaPort: {port}, websocketPort: {websocket},
    noPrependStageInUrl: true}}
"""


def settings(port: int, function: str, mode: str) -> dict[str, Any]:
    return {
        "memory_mb": 1024, "timeout_s": 60, "function": function, "region": "us-east-1", "mode": mode,
        "endpoint_url": f"http://127.0.0.1:{port}",
    }  # fmt: skip


def emulator(folder: Path, deployed: Mapping[str, str]) -> Peer:
    """One call at a time, a real context."""
    tool = needed(f".venv-clouds-tools/aws-lambda-rie-{platform.machine()}")
    python = needed(".venv-clouds/bin/python")
    port = free_port()
    command = [tool, "--runtime-interface-emulator-address", f"127.0.0.1:{port}", "--runtime-api-address",
               f"127.0.0.1:{free_port()}", python, "-m", "awslambdaric",
               "cloud_adapters.handlers.aws_lambda.handler"]  # fmt: skip
    environment = {**deployed, "AWS_LAMBDA_FUNCTION_TIMEOUT": "60", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024"}
    return Peer("aws-lambda", settings(port, "function", "sync"), [start(command, port, folder, environment)])


def offline(folder: Path, deployed: Mapping[str, str], mode: str) -> Peer:
    """The API of Lambda, with a Python process for each function."""
    node = needed(".venv-clouds-tools/node/node_modules")
    python = needed(".venv-clouds/bin/python")
    http, port = free_port(), free_port()
    (folder / "entry.py").write_text("from cloud_adapters.handlers.aws_lambda import handler\n")
    (folder / "serverless.yml").write_text(CONFIG.format(http=http, port=port, websocket=free_port()))
    (folder / "node_modules").symlink_to(node)
    environment = {**deployed, **KEYS, "SLS_TELEMETRY_DISABLED": "1", "SLS_NOTIFICATIONS_MODE": "off",
                   "VIRTUAL_ENV": str(python.parents[1])}  # fmt: skip
    command = ["node", node / ".bin" / "osls", "offline", "start"]
    process = start(command, port, folder, environment)
    return Peer(
        "aws-lambda", settings(port, "fedless-dev-fn", mode), [process], answers=mode == "sync",
        unknown=settings(port, "fedless-dev-none", mode),
    )  # fmt: skip
