"""Cloud platforms on this machine: the platforms' own runtimes, with our functions in them. Called by `fleet`.

A kind of client has a `Start`, which starts what serves a group's functions and tells how each is reached. What runs:

    aws-lambda   AWS' Runtime Interface Emulator with awslambdaric, a process for each function
    google       Google's functions-framework, a process for each function
    knative      `host`, one process for all functions of the group

The first two come from environments that `make demo-mixed` installs; `FEDLESS_CLOUDS` names the folder that holds them
(default: where the command runs). Each runs the real called side; a deployment has no secret.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fedless
from fedless.experiments.conditions import Conditions
from fedless.experiments.groups import ClientGroup
from fedless.experiments.host import PORT_FILE, SETTINGS_FILE
from fedless.experiments.processes import Child, Children, wait_until
from fedless.protocol.errors import Code, LocalError

HOST = "127.0.0.1"
CLOUDS = "FEDLESS_CLOUDS"
READY_S = 60.0
SDK_KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""For the aggregator: the emulator checks no signature, but the SDK makes one."""
_CODE = Path(fedless.__file__).parents[1]
_SERVE = (sys.executable, "-c", "from fedless.experiments.host import main; main()")


@dataclass
class Peer:
    """What serves some functions: `settings` of each by client id, and the processes behind it."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a group's functions are deployed: `FOLDER/CLIENT.json` is a function's deployment, which comes later."""

    folder: Path
    group: ClientGroup
    client_ids: tuple[str, ...]
    conditions: Conditions
    children: Children

    def variables(self, client_id: str) -> dict[str, str]:
        """What a function's process is told."""
        return {
            "FEDLESS_DEPLOYMENT": str(self.folder / f"{client_id}.json"),
            "FEDLESS_SCRATCH": str(self.folder / f"{client_id}.scratch"),
            "FEDLESS_TIMEOUT_S": str(self.group.timeout_s),
            "PYTHONPATH": str(_CODE),
            **self.conditions.environment(client_id),
        }

    def each(
        self, command: Callable[[int], Sequence[str]], more: Mapping[str, str]
    ) -> dict[str, tuple[int, Child]]:
        """A process for each function that listens on a port of its own; all of them ready."""
        found = {}
        for client_id in self.client_ids:
            port = free_port()
            variables = {**self.variables(client_id), **more}
            found[client_id] = (port, self.children.start(client_id, command(port), variables))
        for client_id, (port, _) in found.items():
            what = f"The runtime of {client_id} does not listen."
            wait_until(partial(listens, port), READY_S, partial(str, what), self.children)
        return found


Start = Callable[[Place], Peer]


def aws_lambda(place: Place) -> Peer:
    """One emulator for each function; it serves one call at a time, as Lambda's instances do."""
    tool = needed(f".venv-clouds-tools/aws-lambda-rie-{platform.machine()}", place.group.kind)
    python = needed(".venv-clouds/bin/python", place.group.kind)

    def command(port: int) -> tuple[str, ...]:
        return (
            str(tool), "--runtime-interface-emulator-address", f"{HOST}:{port}",
            "--runtime-api-address", f"{HOST}:{free_port()}",
            str(python), "-m", "awslambdaric", "cloud_adapters.handlers.aws_lambda.handler",
        )  # fmt: skip

    limits = {
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(place.group.timeout_s),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(place.group.memory_mb),
    }
    started = place.each(command, limits)
    return Peer(
        {
            name: {"function": "function", "region": "us-east-1", "mode": "sync", "endpoint_url": f"http://{HOST}:{port}"}
            for name, (port, _) in started.items()
        },
        {name: child for name, (_, child) in started.items()},
    )  # fmt: skip


def google(place: Place) -> Peer:
    """One functions-framework for each function. It verifies no token, so none is sent."""
    tool = needed(".venv-clouds/bin/functions-framework", place.group.kind)
    python = needed(".venv-clouds/bin/python", place.group.kind)
    source = place.folder / "main.py"
    source.write_text("from cloud_adapters.handlers.google import fedless\n", encoding="utf-8")

    def command(port: int) -> tuple[str, ...]:
        return (
            str(python), str(tool), "--source", str(source), "--target", "fedless", "--signature-type", "http",
            "--host", HOST, "--port", str(port),
        )  # fmt: skip

    started = place.each(command, {})
    return Peer(
        {
            name: {"url": f"http://{HOST}:{port}/", "mode": "http", "public": True}
            for name, (port, _) in started.items()
        },
        {name: child for name, (_, child) in started.items()},
    )


def knative(place: Place) -> Peer:
    """One host for all of them."""
    settings = {
        "concurrency": place.group.concurrency,
        "timeout_s": place.group.timeout_s,
        "proxies": {name: place.conditions.proxy(name) for name in place.client_ids},
    }
    (place.folder / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    child = place.children.start(f"{place.group.label}-host", (*_SERVE, str(place.folder)))
    ready = place.folder / PORT_FILE

    def written() -> bool:
        return ready.is_file() and ready.read_text(encoding="ascii").endswith("\n")

    wait_until(written, READY_S, lambda: "The function host is not ready.", place.children)
    port = int(ready.read_text(encoding="ascii"))
    return Peer(
        {name: {"url": f"http://{HOST}:{port}/{name}", "mode": "http"} for name in place.client_ids},
        dict.fromkeys(place.client_ids, child),
    )


STARTS: dict[str, Start] = {"aws-lambda": aws_lambda, "google": google, "knative": knative}


def needed(path: str, kind: str) -> Path:
    """A part that is installed beside fedless. Raises `LocalError(NOT_INSTALLED)` that says how."""
    folder = Path(os.environ.get(CLOUDS, "."))
    found = folder.absolute() / path
    if not found.exists():
        raise LocalError(
            Code.NOT_INSTALLED,
            f"Clients of kind {kind} need {path}, and {folder.absolute()} has none.",
            fix=f"Run `make demo-mixed`, or name the folder that has it in {CLOUDS}.",
        )
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody does."""
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True
