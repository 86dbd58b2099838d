"""The helper as its packages run: AWS's own emulator, functions-framework, a container's server, and a whole fleet.

Runs in `make test-clouds`: pip fetches the pinned wheels.
"""

from __future__ import annotations

import os
import platform as machine
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.exchange import HelperExchange
from aggregator.link import SecondParty
from cloud_adapters import wheels
from cloud_adapters.packaging import LAMBDA_UNZIPPED_MB, MB, Wanted
from cloud_adapters.packaging import package as make
from cloud_adapters.registry import invoker
from fedless.helper.config import load
from fedless.helper.packaging import contents, secret_text
from fedless.protocol import identity
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.identity import Role
from fedless.protocol.prg import Words
from fedless.protocol.secagg.helper import check_mask_sum, subtract_masks
from fedless.protocol.secagg.helper_messages import CloseRequest
from fedless.protocol.secagg.messages import Member
from tests import objects, postgresql
from tests.contract.peers import aws, knative
from tests.contract.peers.process import Peer, free_port, needed, start
from tests.helper_fleet import FLEET, World
from tests.real.test_helper_rounds import (
    CLIENTS,
    HelperProcess,
    begin,
    check_model,
    ended,
    enroll,
    report_all,
)
from tests.running_fleet import RunningFleet, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(400)]
BARE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
"""An interpreter without our environment."""
DIMENSION = 1_500_000  # 6 MB of sums: more than Lambda answers at once
MEMBERS = (1, 2, 3, 5)
START_S = 150.0
TOOLS = ".venv-clouds-tools/interface"


class Deployed(World):
    """The world, and the helper's folder packaged by the command line."""

    def __init__(self, root: Path, memory: str) -> None:
        super().__init__(root, time.time_ns() // 1_000_000, DIMENSION)
        self.root = root
        with (self.directory / "helper.toml").open("a") as file:
            file.write(f'[state]\nurl = "{memory}"\n')

    def packaged(self, target: str) -> tuple[Path, str]:
        """The folder of the package, and what the command said."""
        return package(self.directory, target, self.root / target)

    def keys(self) -> dict[str, str]:
        """The variable that the platform sets: its secret is mounted as a file."""
        return secret(self.directory, self.root / "keys.json")

    def exchange(self, peer: Peer) -> HelperExchange:
        folder = self.root / "aggregator"
        if not folder.exists():
            folder.mkdir()
            key, chain, _ = self.certify(Role.AGGREGATOR, "main")
            (folder / "cert.pem").write_bytes(chain)
            (folder / "cert.key").write_bytes(key)
        opened = self.open()
        _, public = identity.verify_chain([opened.helper_certificate], self.authority.der, FLEET, self.now_ms)
        member = Member("main", is_device=False, public_key=public)
        party = SecondParty("", opened.helper_certificate, opened.helper_key, member)
        adapter = invoker(peer.platform, "helper", peer.settings)
        return HelperExchange(
            party, adapter, folder, FLEET, clock=lambda: time.time_ns() // 1_000_000, random=os.urandom
        )

    async def check_round(self, peer: Peer) -> CloseRequest:
        """A whole sum, by several members, comes out right; the request."""
        opened = self.open(deadline_at_ms=self.now_ms)
        reports = [self.report(opened, number) for number in MEMBERS]
        request = CloseRequest(opened, tuple(head for head, _ in reports))
        exchange = self.exchange(peer)
        answer = await exchange.close(request, 200_000)
        assert isinstance(answer, tuple)
        check_mask_sum(request, *answer, exchange.party.member)
        left: Words = np.zeros_like(answer[1])
        for _, words in reports:
            np.add(left, words, out=left)
        subtract_masks(left, answer[1])
        assert np.unique(left).tolist() == [sum(MEMBERS)]
        return request

    async def check_once(self, peer: Peer, request: CloseRequest) -> None:
        """Another process answers the same set again, and no other set of that round."""
        assert isinstance(await self.exchange(peer).close(request, 200_000), tuple)
        with pytest.raises(PeerError) as error:
            await self.exchange(peer).close(CloseRequest(request.open, request.reports[:3]), 200_000)
        assert error.value.code is Code.CONFLICTING_REPEAT


def package(directory: Path, target: str, out: Path) -> tuple[Path, str]:
    """As `fedless helper package`, which unit/helper/test_packaging.py runs; the commands that it prints."""
    made = make(target, Wanted(contents(load(directory / "helper.toml")), out))
    return out, "\n".join(made.commands)


def secret(directory: Path, out: Path) -> dict[str, str]:
    """As `fedless helper secret`."""
    out.write_text(secret_text(load(directory / "helper.toml"), "knative"))
    return {"FEDLESS_HELPER_KEYS": str(out)}


@pytest.fixture(scope="module")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[objects.ObjectServer]:
    needed(TOOLS)
    server = objects.started(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture
def database() -> Iterator[postgresql.Server]:
    needed(TOOLS)
    server = postgresql.started(free_port)
    yield server
    server.remove()


async def test_lambda_package_answers_in_the_emulator(
    object_server: objects.ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = needed(f".venv-clouds-tools/aws-lambda-rie-{machine.machine()}")
    interface = needed(TOOLS)
    world = Deployed(tmp_path, object_server.bucket(tmp_path)[0])
    folder, said = world.packaged("aws-lambda")
    assert "--handler fedless.helper.entries.aws_lambda.handler" in said
    assert "--environment file://keys.json" in said
    with zipfile.ZipFile(folder / "function.zip") as archive:
        names = archive.namelist()
        assert sum(item.file_size for item in archive.infolist()) < LAMBDA_UNZIPPED_MB * MB
        archive.extractall(tmp_path / "task")
    assert not [
        name for name in names if name.startswith(("aggregator", "ai_edge_litert", "grpc", "pydantic"))
    ]
    for name, value in aws.KEYS.items():
        monkeypatch.setenv(name, value)
    environment = {"PYTHONPATH": f"{tmp_path / 'task'}:{interface}", "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",
                   **world.keys(), **objects.variables(object_server.endpoint)}  # fmt: skip

    def emulator() -> Peer:
        port = free_port()
        command = [tool, "--runtime-interface-emulator-address", f"127.0.0.1:{port}", "--runtime-api-address",
                   f"127.0.0.1:{free_port()}", BARE, "-m", "awslambdaric",
                   "fedless.helper.entries.aws_lambda.handler"]  # fmt: skip
        return Peer(
            "aws-lambda",
            aws.settings(port, "function", "sync"),
            [start(command, port, tmp_path, environment)],
        )

    first = emulator()
    try:
        request = await world.check_round(first)
    finally:
        first.stop()
    second = emulator()
    try:
        await world.check_once(second, request)
    finally:
        second.stop()


async def test_google_source_answers_in_functions_framework(
    object_server: objects.ObjectServer, tmp_path: Path
) -> None:
    tool = needed(".venv-clouds/bin/functions-framework")
    python = needed(".venv-clouds/bin/python")
    world = Deployed(tmp_path, object_server.bucket(tmp_path)[0])
    folder, said = world.packaged("google")
    assert "--entry-point helper" in said
    # what Google's builder does with the source
    built = wheels.Target(f"{sys.version_info.major}.{sys.version_info.minor}", machine.machine())
    wheels.install(tmp_path / "built", built, wheels.pinned(folder / "source" / "requirements.txt"))
    port = free_port()
    command = [
        python,
        tool,
        "--target",
        "helper",
        "--signature-type",
        "http",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    environment = {"PYTHONPATH": f"{folder / 'source'}:{tmp_path / 'built'}", **world.keys(),
                   **objects.variables(object_server.endpoint)}  # fmt: skip
    settings = {"memory_mb": 1024, "timeout_s": 60, "url": f"http://127.0.0.1:{port}/", "mode": "http",
                "public": True}  # fmt: skip
    peer = Peer("google", settings, [start(command, port, folder / "source", environment, START_S)])
    try:
        await world.check_once(peer, await world.check_round(peer))
    finally:
        peer.stop()


def serve(folder: Path, site: Path, environment: Mapping[str, str]) -> Peer:
    """A container's server, from its context alone."""
    port = free_port()
    command = [BARE, "-m", "fedless.helper.entries.server"]
    process = start(
        command, port, folder, {"PYTHONPATH": str(site), "PORT": str(port), **environment}, START_S
    )
    settings: dict[str, Any] = knative.settings(port, "http")
    return Peer("knative", settings, [process])


async def test_containers_on_one_database_answer_once(database: postgresql.Server, tmp_path: Path) -> None:
    world = Deployed(tmp_path, database.url())
    folder, said = world.packaged("knative")
    assert "kubectl create secret generic fedless-helper-greenhouse-keys --from-file keys=keys.json" in said
    assert "FEDLESS_HELPER_KEYS" in (folder / "service.yaml").read_text()
    peers = [serve(tmp_path, folder / "context" / "site", world.keys())]
    try:
        request = await world.check_round(peers[0])
        environment = {"FEDLESS_HELPER_KEYS": (tmp_path / "keys.json").read_text()}
        peers.append(serve(tmp_path, folder / "context" / "site", environment))
        await world.check_once(peers[1], request)
    finally:
        for peer in peers:
            peer.stop()


def test_fleet_asks_a_helper_in_a_function_that_is_away_at_first(
    database: postgresql.Server, tmp_path: Path
) -> None:
    fleet = RunningFleet(tmp_path / "home")
    peer = None
    try:
        second = HelperProcess(tmp_path / "helper", fleet)
        with (second.folder / "helper.toml").open("a") as file:
            file.write(f'[state]\nurl = "{database.url()}"\n')
        folder, _ = package(second.folder, "knative", tmp_path / "package")
        keys = secret(second.folder, tmp_path / "keys.json")
        second.introduce()
        port = free_port()
        settings = (fleet.folder / "aggregator.toml").read_text().replace('address = "127.0.0.1:0"\n', "")
        (fleet.folder / "aggregator.toml").write_text(
            f'{settings}platform = "knative"\n[helper.function]\nurl = "http://127.0.0.1:{port}/"\nmode = "http"\n'
            "memory_mb = 1024\ntimeout_s = 60\n"
        )
        fleet.start()
        members = {
            f"client-{number}": enroll(fleet, f"client-{number}", second.pin) for number in range(CLIENTS)
        }
        run_id = begin(fleet, tmp_path)
        report_all(fleet, members)
        wait_until(lambda: "helper_waited_for" in fleet.log.read_text())
        environment = {"PYTHONPATH": str(folder / "context" / "site"), "PORT": str(port), **keys}
        process = start([BARE, "-m", "fedless.helper.entries.server"], port, tmp_path, environment, START_S)
        peer = Peer("knative", {}, [process])
        wait_until(lambda: ended(fleet, run_id), 90)
        check_model(fleet, run_id)
        log = (tmp_path / f"{port}.log").read_text()
        assert "event=sum_answered" in log
        hpke = (second.folder / "hpke.key").read_text().strip()
        assert not any(hpke in text for text in (log, fleet.log.read_text()))
    finally:
        if peer is not None:
            peer.stop()
        fleet.close()
