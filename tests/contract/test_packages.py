"""Packages as `fedless function package` makes them: complete without anything else, and within the platforms' limits.

Runs in `make test-clouds`: pip fetches the pinned wheels.
"""

from __future__ import annotations

import json
import platform as machine
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloud_adapters.base import Receipt
from cloud_adapters.packaging import DEPLOYMENT, LAMBDA_UNZIPPED_MB, MB, TARGETS, Wanted, package
from cloud_adapters.registry import invoker, platforms
from fedless.protocol.errors import Code, LocalError
from tests.cloud_fleet import CloudFleet
from tests.contract.peers import aws, knative
from tests.contract.peers.process import Peer, free_port, needed, start
from tests.edge_fleet import now_ms
from tests.running_fleet import fedless

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(180)]
CLIENT = "fn-1"
BARE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
"""An interpreter without our environment."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[CloudFleet]:
    fleet = CloudFleet(tmp_path)
    yield fleet
    fleet.stop()


async def invoke(fleet: CloudFleet, peer: Peer) -> Receipt:
    adapter = invoker(peer.platform, CLIENT, peer.settings)
    ticket = fleet.open_round(CLIENT)
    try:
        receipt = await adapter.invoke(
            fleet.wake_bytes(ticket), partial(fleet.claim, CLIENT), now_ms() + 60_000
        )
    finally:
        await adapter.close()
        peer.stop()
    assert fleet.reported(ticket.round_id)
    return receipt


async def test_lambda_zip_runs_in_the_emulator(
    fleet: CloudFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = needed(f".venv-clouds-tools/aws-lambda-rie-{machine.machine()}")
    interface = needed(".venv-clouds-tools/interface")
    made = package("aws-lambda", Wanted(fleet.deployment(CLIENT), tmp_path / "out"))
    assert made.size_bytes < LAMBDA_UNZIPPED_MB * MB
    with zipfile.ZipFile(made.path) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "task")
    assert DEPLOYMENT in names
    assert not [name for name in names if name.startswith(("tensorflow", "aggregator", "fedless/console"))]
    for name, value in aws.KEYS.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    command = [tool, "--runtime-interface-emulator-address", f"127.0.0.1:{port}", "--runtime-api-address",
               f"127.0.0.1:{free_port()}", BARE, "-m", "awslambdaric",
               "cloud_adapters.handlers.aws_lambda.handler"]  # fmt: skip
    environment = {"PYTHONPATH": f"{tmp_path / 'task'}:{interface}", "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",
                   "FEDLESS_SCRATCH": str(tmp_path / "scratch")}  # fmt: skip
    peer = Peer(
        "aws-lambda", aws.settings(port, "function", "sync"), [start(command, port, tmp_path, environment)]
    )
    receipt = await invoke(fleet, peer)
    assert receipt.answer is not None
    assert receipt.answer.outcome == "reported"


async def test_container_context_serves(fleet: CloudFleet, tmp_path: Path) -> None:
    needed(".venv-clouds-tools/interface")
    made = package("knative", Wanted(fleet.deployment(CLIENT), tmp_path / "out"))
    assert (made.path / "Dockerfile").read_text().startswith("FROM python:3.")
    port = free_port()
    environment = {
        "PYTHONPATH": str(made.path / "site"),
        "PORT": str(port),
        "FEDLESS_SCRATCH": str(tmp_path / "scratch"),
    }
    command = [BARE, "-m", "cloud_adapters.handlers.server"]
    peer = Peer("knative", knative.settings(port, "http"), [start(command, port, tmp_path, environment)])
    receipt = await invoke(fleet, peer)
    assert receipt.answer is not None
    assert receipt.answer.outcome == "reported"


def test_every_platform_has_a_package() -> None:
    assert sorted(TARGETS) == platforms()


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"google"}))
def test_wheels_are_for_the_platform_and_not_for_this_machine(
    fleet: CloudFleet, tmp_path: Path, target: str
) -> None:
    needed(".venv-clouds-tools/interface")
    made = package(target, Wanted(fleet.deployment(CLIENT), tmp_path / "out", architecture="aarch64"))
    assert made.commands
    found = [path.name for path in (tmp_path / "out").rglob("*.so")]
    for archive in (tmp_path / "out").glob("*.zip"):
        found += [name for name in zipfile.ZipFile(archive).namelist() if name.endswith(".so")]
    assert any("aarch64" in name for name in found)
    assert not any("x86_64" in name for name in found)


def test_google_source_pins_with_hashes(fleet: CloudFleet, tmp_path: Path) -> None:
    made = package("google", Wanted(fleet.deployment(CLIENT), tmp_path / "out"))
    pins = (made.path / "requirements.txt").read_text()
    assert "--hash=sha256:" in pins
    assert "tensorflow" not in pins
    assert json.loads((made.path / DEPLOYMENT).read_text())["client_id"] == CLIENT


def test_command_says_size_and_how_to_deploy(fleet: CloudFleet, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(fleet.deployment(CLIENT))
    arguments = (
        "function",
        "package",
        "--target",
        "google",
        "--deployment",
        tmp_path / "d.json",
        "-o",
        tmp_path / "out",
    )
    done = fedless(*arguments)
    assert done.returncode == 0, done.stderr
    assert "gcloud functions deploy fedless-fn-1 --gen2" in done.stdout
    assert "MB" in done.stdout
    assert "exists" in fedless(*arguments).stderr


@pytest.mark.parametrize(
    ("target", "deployment", "code"),
    [("tinyfaas", None, Code.CONFIG_INVALID), ("google", "{}", Code.CONFIG_INVALID)],
)
def test_bad_requests_leave_nothing_behind(
    fleet: CloudFleet, tmp_path: Path, target: str, deployment: str | None, code: Code
) -> None:
    with pytest.raises(LocalError) as caught:
        package(target, Wanted(deployment or fleet.deployment(CLIENT), tmp_path / "out"))
    assert caught.value.code is code
    assert not (tmp_path / "out").exists()
