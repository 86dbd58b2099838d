"""Helper mode as it runs: `fedless aggregator serve` and `fedless helper serve` as two processes, clients over gRPC.

The clients are the participant's own link and the pure client code with certificates of the fleet; their wake-ups are
read from the aggregator's database instead of the broker.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import ssl
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from aggregator.config import HelperSettings
from aggregator.link import HelperLink, read_second_party
from edge_runtime.link import Link
from fedless.protocol import crypto, identity
from fedless.protocol.claim import parse_claim
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import Name, Role
from fedless.protocol.messages import CheckIn, Encoding, Offer, ReportHeader
from fedless.protocol.secagg import codec, helper, ring
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen
from fedless.protocol.wire import policy_from_pb
from tests.running_fleet import FEDLESS, ROOT, Credentials, RunningFleet, fedless, now_ms, wait_until

pytestmark = pytest.mark.real
FUNCTION = ROOT / "examples" / "mnist" / "function-mlp"
CLIENTS = 8
TASK = f"""
name = "helped"
function = "{FUNCTION}"
mode = "helper"
rounds = 1
[cohort]
size = {CLIENTS}
minimum_reports = {CLIENTS}
over_selection = 1.0
[evaluation]
central_every = 0
"""


@dataclass
class HelperProcess:
    """`fedless helper serve`, certified by a fleet's operator; always on the same port."""

    folder: Path
    fleet: RunningFleet
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    pin: bytes = field(init=False)

    def __post_init__(self) -> None:
        authority = self.fleet.folder / "authority" / "authority.pem"
        made = fedless("helper", "init", self.folder, "--fleet", self.fleet.name, "--authority", authority)
        assert made.returncode == 0, made.stderr
        signed = fedless("helper", "certify", "--fleet", self.fleet.folder, self.folder / "request.der")
        assert signed.returncode == 0, signed.stderr
        (self.folder / "cert.pem").write_text(signed.stdout)
        self.pin = crypto.sha256(bytes.fromhex((self.folder / "hpke.pub").read_text()))
        self.own_settings = (self.folder / "helper.toml").read_text()

    def start(self) -> None:
        listen = f'[listen]\naddress = "127.0.0.1"\nport = {self.port}\n'
        (self.folder / "helper.toml").write_text(self.own_settings + listen)
        endpoint = self.folder / "state" / "endpoint.json"
        endpoint.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            argv = [*FEDLESS, "helper", "serve", str(self.folder)]
            self.process = subprocess.Popen(argv, cwd=ROOT, stderr=log)
        wait_until(lambda: endpoint.exists() and endpoint.read_text().endswith("\n"), 40)
        self.port = json.loads(endpoint.read_text())["port"]

    def introduce(self) -> None:
        """Tell the fleet of it, as docs/helper.md says."""
        (self.fleet.folder / "helper").mkdir()
        for name in ("cert.pem", "hpke.pub"):
            (self.fleet.folder / "helper" / name).write_bytes((self.folder / name).read_bytes())
        with (self.fleet.folder / "aggregator.toml").open("a") as settings:
            settings.write(f'\n[helper]\naddress = "127.0.0.1:{self.port}"\n')

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RunningFleet]:
    running = RunningFleet(tmp_path / "home")
    yield running
    running.close()


@pytest.fixture
def second(fleet: RunningFleet, tmp_path: Path) -> Iterator[HelperProcess]:
    made = HelperProcess(tmp_path / "helper", fleet)
    yield made
    made.kill()


def enroll(fleet: RunningFleet, client_id: str, pin: bytes) -> Credentials:
    key = identity.new_key()
    reply = fleet.enroll(parse_claim(fleet.claim(client_id)).secret, identity.make_csr(key))
    assert policy_from_pb(reply.policy).helper_key_digest == pin
    chain = "".join(ssl.DER_cert_to_PEM_cert(der) for der in reply.chain_der).encode()
    return Credentials(identity.key_pem(key), chain)


def nonces(fleet: RunningFleet) -> dict[str, tuple[int, bytes]]:
    """Who was woken for which round, by which nonce."""
    path = fleet.folder / "state" / "fedless.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT client_id, round_id, nonce FROM cohort").fetchall()
    return {client_id: (round_id, nonce) for client_id, round_id, nonce in rows}


def take_part(fleet: RunningFleet, number: int, who: Credentials, woken: tuple[int, bytes]) -> None:
    """Client `number` reports 0.5 in its own coordinate and 0 elsewhere."""
    client_id, (round_id, nonce) = f"client-{number}", woken
    with Link(
        fleet.endpoints["operator"], identity.server_name(fleet.name), who.key, who.chain, fleet.authority.pem
    ) as link:
        offer = link.check_in(CheckIn(round_id, nonce))
        assert isinstance(offer, Offer)
        opened = codec.loads(HelperOpen, offer.round_open)
        update = np.zeros(opened.encoding.dimension, np.float32)
        update[number] = 0.5
        words = ring.encode(opened.encoding, update, 100, {"loss": 1.5}, crypto.sha256(who.key))
        private = crypto.p256_from_pem(who.key)
        leaf = ssl.PEM_cert_to_DER_cert(
            who.chain.decode().partition("-----END")[0] + "-----END CERTIFICATE-----"
        )
        head = helper.mask_for_helper(
            opened,
            client_id,
            leaf,
            words,
            seed=hashlib.sha256(who.key + nonce).digest(),
            sign=lambda message: crypto.ecdsa_sign(private, message),
        )
        header = ReportHeader(round_id, Encoding.RING32, words.nbytes, head.sha256, masked=codec.dumps(head))
        assert link.begin_report(header) == (0, False)
        link.put_report(round_id, 0, iter([words.tobytes()]))


def begin(fleet: RunningFleet, folder: Path) -> str:
    (folder / "task.toml").write_text(TASK)
    started = fedless("run", "start", folder / "task.toml", "--fleet", fleet.folder)
    assert started.returncode == 0, started.stderr
    wait_until(lambda: len(nonces(fleet)) == CLIENTS)
    return started.stdout.strip()


def report_all(fleet: RunningFleet, members: dict[str, Credentials]) -> None:
    woken = nonces(fleet)
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = [
            pool.submit(take_part, fleet, int(name.rpartition("-")[2]), who, woken[name])
            for name, who in members.items()
        ]
        for one in done:
            one.result()


def check_model(fleet: RunningFleet, run_id: str) -> None:
    """The mean of the eight, added to the initial weights."""
    with fleet.operator() as operator:
        info = operator.run(run_id)
        assert (info.state, info.rounds[0].mode, info.rounds[0].reported) == ("finished", "helper", CLIENTS)
        assert info.rounds[0].metrics["train_loss"] == pytest.approx(1.5, abs=1e-5)
        model = np.frombuffer(b"".join(operator.fetch(info.model_digest)), "<f4")
    expected = np.fromfile(FUNCTION / "initial.f32", "<f4")
    expected[:CLIENTS] += 0.5 / CLIENTS
    np.testing.assert_allclose(model, expected, atol=1e-6)


def ended(fleet: RunningFleet, run_id: str) -> bool:
    with fleet.operator() as operator:
        return operator.run(run_id).state != "running"


@pytest.mark.long
def test_round_with_a_helper_that_is_killed_and_an_aggregator_that_is_killed(
    fleet: RunningFleet, second: HelperProcess, tmp_path: Path
) -> None:
    second.start()
    second.introduce()
    fleet.start()
    members = {f"client-{number}": enroll(fleet, f"client-{number}", second.pin) for number in range(CLIENTS)}
    run_id = begin(fleet, tmp_path)
    second.kill()
    report_all(fleet, members)
    wait_until(lambda: "helper_waited_for" in fleet.log.read_text())
    fleet.stop(signal.SIGKILL)
    fleet.start()
    second.start()
    wait_until(lambda: ended(fleet, run_id), 60)
    check_model(fleet, run_id)
    assert "round_closed" in (second.folder / "log").read_text()


def test_run_in_helper_mode_is_refused_by_a_fleet_without_a_helper(
    fleet: RunningFleet, tmp_path: Path
) -> None:
    fleet.start()
    (tmp_path / "task.toml").write_text(TASK)
    refused = fedless("run", "start", tmp_path / "task.toml", "--fleet", fleet.folder)
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert "The task is in mode helper, and this fleet has no helper." in said
    assert "Name one under [helper] in aggregator.toml (docs/helper.md)" in said


# -- the aggregator's link


@pytest.fixture
def settings(fleet: RunningFleet, second: HelperProcess) -> HelperSettings:
    second.start()
    second.introduce()
    return HelperSettings(address=f"127.0.0.1:{second.port}", directory=fleet.folder / "helper")


def a_request(fleet: RunningFleet, settings: HelperSettings) -> CloseRequest:
    party = read_second_party(settings, fleet.authority.der, fleet.name, now_ms())
    encoding = ring.plan(n=8, dimension=10, clip=1.0, max_examples=10)
    opened = HelperOpen(
        1, 0, bytes(32), bytes(32), encoding, crypto.Prg.AES, 8, now_ms(), party.certificate, party.key, b""
    )
    return CloseRequest(opened, ())


def link_to(fleet: RunningFleet, settings: HelperSettings) -> HelperLink:
    party = read_second_party(settings, fleet.authority.der, fleet.name, now_ms())
    return HelperLink(party, fleet.folder / "aggregator", fleet.name)


async def refusal_of(link: HelperLink, request: CloseRequest) -> PeerError:
    with pytest.raises(PeerError) as refusal:
        await link.close(request, 10_000)
    return refusal.value


async def test_refusal_of_the_helper_and_its_absence_are_told_by_name(
    fleet: RunningFleet, settings: HelperSettings, second: HelperProcess
) -> None:
    link, request = link_to(fleet, settings), a_request(fleet, settings)
    refused = await refusal_of(link, request)
    assert (refused.code, refused.detail) == (Code.TOO_FEW, "Expected 8 reports or more, found 0.")
    second.kill()
    assert (await refusal_of(link, request)).code is Code.HELPER_UNREACHABLE


@pytest.mark.parametrize("role", [Role.HELPER, Role.AGGREGATOR, Role.BROKER])
async def test_another_server_of_the_fleet_at_the_helpers_address_is_not_talked_to(
    fleet: RunningFleet, settings: HelperSettings, role: Role
) -> None:
    """Not even one with another certificate of role helper: it is the one that the operator put there."""
    other = Credentials.issued(fleet.authority, Name(fleet.name, role, "other"), now_ms())
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials(
        [(other.key, other.chain)], fleet.authority.pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        there = settings.model_copy(update={"address": f"127.0.0.1:{port}"})
        refused = await refusal_of(link_to(fleet, there), a_request(fleet, settings))
    finally:
        await server.stop(0)
    assert refused.code is Code.FOREIGN_CERTIFICATE


def test_second_party_with_missing_or_wrong_files_is_refused(
    fleet: RunningFleet, settings: HelperSettings
) -> None:
    def complaint() -> LocalError:
        with pytest.raises(LocalError) as error:
            read_second_party(settings, fleet.authority.der, fleet.name, now_ms())
        return error.value

    (settings.directory / "hpke.pub").write_text("00" * 31)
    assert complaint().code is Code.STATE_CORRUPT
    (settings.directory / "hpke.pub").unlink()
    assert complaint().code is Code.STATE_MISSING
    device = Credentials.issued(fleet.authority, Name(fleet.name, Role.DEVICE, "device"), now_ms())
    (settings.directory / "cert.pem").write_bytes(device.chain)
    assert "expected a certificate of role helper, found device" in str(complaint())
    (settings.directory / "cert.pem").write_text("none")
    assert complaint().code is Code.CONFIG_INVALID


def test_service_with_a_helper_but_without_its_files_says_so(fleet: RunningFleet, tmp_path: Path) -> None:
    with (fleet.folder / "aggregator.toml").open("a") as file:
        file.write('\n[helper]\naddress = "127.0.0.1:1"\n')
    assert tomllib.loads((fleet.folder / "aggregator.toml").read_text())["helper"]
    served = fedless("aggregator", "serve", "--fleet", fleet.folder)
    assert served.returncode == 1
    assert "Put the helper's cert.pem and hpke.pub there" in " ".join(served.stderr.split())
