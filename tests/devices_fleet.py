"""Real devices of a running fleet for tests: enrolled by the command line, their agents as processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from typer.testing import CliRunner

from edge_runtime.cli import main as edge
from fedless.console.main import build
from fedless.protocol import bundle_format
from fedless.protocol.crypto import ed25519_from_pem
from fedless.protocol.errors import FedlessError
from tests.edge_processes import Device
from tests.running_fleet import RunningFleet, wait_until

BODY = "    return {'sum': sum(event or []), 'version': context.version}\n"


def enrolled(fleet: RunningFleet, state: Path, client_id: str, settings: str = "") -> Path:
    """The state directory of a device that has joined."""
    claim = state.with_name(f"{state.name}.claim")
    claim.write_text(fleet.claim(client_id))
    assert edge(["enroll", "--state", str(state), "--claim", str(claim), *_again(state)]) == 0
    (state / "edge.toml").write_text(settings)
    return state


def _again(state: Path) -> list[str]:
    return ["--again"] if (state / "identity" / "fleet.json").exists() else []


def online(fleet: RunningFleet, device: Device, client_id: str) -> Device:
    """The device once the service has seen it."""
    with fleet.operator() as operator:
        wait_until(lambda: client_id in operator.online(), 40)
    return device


def publisher(fleet: RunningFleet) -> bytes:
    return ed25519_from_pem((fleet.folder / "publisher" / "publisher.key").read_bytes())


def function(
    path: Path, key: bytes, version: int, body: str = BODY, name: str = "adder", mounts: Sequence[str] = ()
) -> Path:
    """A signed bundle of a function of a few lines, in a file."""
    manifest = (
        f'format = 1\n[function]\nname = "{name}"\nversion = {version}\nentry = "main:handle"\n'
        f"memory_mb = 150\ntimeout_ms = 10000\ndata_mounts = {json.dumps(list(mounts))}\n"
    )
    code = f"def handle(event, context):\n{body}"
    path.write_bytes(bundle_format.pack({"function.toml": manifest.encode(), "main.py": code.encode()}, key))
    return path


@dataclass(frozen=True)
class Said:
    """What a command of `fedless` wrote, and its exit status."""

    stdout: str
    stderr: str
    status: int


def command(*arguments: str | Path, of: RunningFleet) -> Said:
    """`fedless ...` in this process, which saves its start; a refusal becomes its line on standard error."""
    given = [*map(str, arguments), "--fleet", str(of.folder)]
    try:
        done = CliRunner().invoke(build(given[0]), given)
    finally:
        structlog.reset_defaults()  # some commands set the log up as for a process of their own
    if isinstance(done.exception, FedlessError):
        return Said(done.stdout, str(done.exception), 1)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.stdout, done.stderr, done.exit_code)


def say(fleet: RunningFleet, *arguments: str | Path) -> str:
    """What the command says of this fleet; it must succeed."""
    done = command(*arguments, of=fleet)
    assert done.status == 0, done
    return done.stdout + done.stderr
