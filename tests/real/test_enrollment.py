"""Joining a fleet through the real enrollment port, as a device does it; and the attacks on it."""

from __future__ import annotations

import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from aggregator.authority import Authority
from edge_runtime.enroll import enroll
from fedless.protocol import identity
from fedless.protocol.claim import parse_claim
from fedless.protocol.errors import Code, PeerError
from tests.running_fleet import RunningFleet, now_ms, refusal

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with RunningFleet(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


def refused(state: Path, claim: str) -> Code:
    with pytest.raises(PeerError) as caught:
        enroll(state, claim)
    assert parse_secret(claim) not in str(caught.value)
    return caught.value.code


def parse_secret(claim: str) -> str:
    return claim.rsplit(".", 2)[1]


def test_device_enrolls_and_holds_its_identity_privately(fleet: RunningFleet, tmp_path: Path) -> None:
    joined = enroll(tmp_path / "device", fleet.claim("dev-1"))
    assert (joined.fleet, joined.client_id) == ("home", "dev-1")
    files = list((tmp_path / "device" / "identity").iterdir())
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    with fleet.operator() as operator:
        states = {client.client_id: client.state for client in operator.clients()}
    assert states["dev-1"] == "enrolled"


def test_claim_used_twice_is_refused(fleet: RunningFleet, tmp_path: Path) -> None:
    claim = fleet.claim("dev-2")
    enroll(tmp_path / "device", claim)
    assert refused(tmp_path / "thief", claim) is Code.CLAIM_USED
    assert "claim_used" in fleet.log.read_text(), "the operator hears of it"


def test_expired_claim_is_refused(fleet: RunningFleet, tmp_path: Path) -> None:
    assert refused(tmp_path / "device", fleet.claim("dev-3", valid_ms=1)) is Code.CLAIM_EXPIRED


def test_mistyped_claim_is_refused(fleet: RunningFleet, tmp_path: Path) -> None:
    claim = fleet.claim("dev-4")
    middle = len(claim) - 20
    wrong = claim[:middle] + ("a" if claim[middle] != "a" else "b") + claim[middle + 1 :]
    assert refused(tmp_path / "device", wrong) is Code.CLAIM_MALFORMED
    enroll(tmp_path / "device", claim)


def test_claim_of_another_fleet_is_refused_before_the_secret_is_sent(
    fleet: RunningFleet, tmp_path: Path
) -> None:
    other = Authority.create("home", now_ms())
    claim = replace(parse_claim(fleet.claim("dev-5")), authority=other.digest).text
    assert refused(tmp_path / "device", claim) is Code.CLAIM_FOREIGN


def test_same_claim_and_key_get_the_same_certificate_after_a_crash(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "home")
    fleet.start()
    try:
        secret, csr = parse_claim(fleet.claim("dev-1")).secret, identity.make_csr(identity.new_key())
        first = fleet.enroll(secret, csr)
        fleet.stop(signal.SIGKILL)
        fleet.start()
        assert fleet.enroll(secret, csr).chain_der == first.chain_der
    finally:
        fleet.close()


def test_guessing_claims_is_slowed_down(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "home")
    fleet.start(FEDLESS__LIMITS__FAILED_CLAIMS_PER_MINUTE="3")
    try:
        csr = identity.make_csr(identity.new_key())
        codes = [refusal(lambda: fleet.enroll("a" * 26, csr)).code for _ in range(4)]
        assert codes == [Code.CLAIM_UNKNOWN] * 3 + [Code.BUSY]
        good = parse_claim(fleet.claim("dev-1")).secret
        waits = refusal(lambda: fleet.enroll(good, csr)).retry_after_ms
        assert waits is not None
        assert 0 < waits <= 60_000
    finally:
        fleet.close()


def test_enrollment_port_offers_nothing_else(fleet: RunningFleet) -> None:
    device = fleet.device("dev-6")
    credentials = grpc.ssl_channel_credentials(fleet.authority.pem, device.key, device.chain)
    options = (("grpc.ssl_target_name_override", identity.server_name("home")),)
    from fedless.v1 import operator_pb2, operator_pb2_grpc

    with grpc.secure_channel(fleet.endpoints["enrollment"][0], credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            operator_pb2_grpc.OperatorStub(channel).Info(operator_pb2.InfoRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_nonsense_is_refused_and_the_service_goes_on(fleet: RunningFleet, tmp_path: Path) -> None:
    claim = parse_claim(fleet.claim("dev-7"))
    assert refusal(lambda: fleet.enroll(claim.secret, b"\xff" * 100)).code is Code.BAD_CSR
    assert refusal(lambda: fleet.enroll("", b"x")).code is Code.MALFORMED
    assert refusal(lambda: fleet.enroll(claim.secret, b"x" * 20_000)).code is Code.MALFORMED
    enroll(tmp_path / "device", claim.text)
