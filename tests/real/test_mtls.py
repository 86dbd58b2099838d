"""Who gets in on the fleet port: real TLS handshakes, roles per method, revocation on open connections."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial

import grpc
import pytest

from aggregator.authority import Authority
from fedless.protocol import identity
from fedless.protocol.errors import Code
from fedless.v1 import fleet_pb2, operator_pb2, rounds_pb2
from tests.running_fleet import Calls, Credentials, RunningFleet, now_ms, refusal, refusals, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with RunningFleet(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def device(fleet: RunningFleet) -> Credentials:
    return fleet.device("dev-1")


def fetch(calls: Calls, request: fleet_pb2.BlobRequest) -> list[fleet_pb2.BlobChunk]:
    return list(calls.fleet.FetchBlob(request, timeout=10))


def status(calls: Calls) -> fleet_pb2.StatusReply:
    reply: fleet_pb2.StatusReply = refusals(
        lambda: calls.fleet.ReportStatus(fleet_pb2.DeviceStatus(), timeout=10)
    )
    return reply


def handshake_failed(fleet: RunningFleet, who: Credentials | None) -> bool:
    with fleet.calls(who) as calls, pytest.raises(grpc.RpcError) as caught:
        status(calls)
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE and not caught.value.trailing_metadata()


def test_device_of_this_fleet_gets_in(fleet: RunningFleet, device: Credentials) -> None:
    with fleet.calls(device) as calls:
        assert abs(status(calls).now_ms - now_ms()) < 60_000


def test_no_certificate_is_refused(fleet: RunningFleet) -> None:
    assert handshake_failed(fleet, None)


def test_certificate_of_another_fleet_is_refused(fleet: RunningFleet) -> None:
    other = Authority.create("home", now_ms())  # the same name, another key
    name = identity.Name("home", identity.Role.DEVICE, "dev-1")
    assert handshake_failed(fleet, Credentials.issued(other, name, now_ms()))


def test_certificate_for_another_fleet_by_the_same_authority_is_refused(fleet: RunningFleet) -> None:
    name = identity.Name("garden", identity.Role.DEVICE, "dev-1")
    with fleet.calls(Credentials.issued(fleet.authority, name, now_ms())) as calls:
        assert refusal(lambda: status(calls)).code is Code.FOREIGN_CERTIFICATE


def test_expired_certificate_is_refused(fleet: RunningFleet) -> None:
    name = identity.Name("home", identity.Role.DEVICE, "dev-1")
    assert handshake_failed(fleet, Credentials.issued(fleet.authority, name, now_ms() - 2 * DAY_MS))


def test_certificate_signed_by_a_device_is_refused(fleet: RunningFleet, device: Credentials) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(device.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = Authority("home", x509.load_pem_x509_certificate(device.chain), key)
    name = identity.Name("home", identity.Role.OPERATOR, "main")
    assert handshake_failed(fleet, Credentials.issued(issuer, name, now_ms()))


def test_device_cannot_act_as_operator(fleet: RunningFleet, device: Credentials) -> None:
    with fleet.calls(device) as calls:
        for call in (
            lambda: calls.operator.IssueClaims(operator_pb2.IssueClaimsRequest(count=1), timeout=10),
            lambda: calls.operator.ListClients(operator_pb2.ListClientsRequest(), timeout=10),
            lambda: calls.operator.RevokeClient(
                operator_pb2.RevokeClientRequest(client_id="dev-1"), timeout=10
            ),
            lambda: calls.operator.StartRun(operator_pb2.StartRunRequest(), timeout=10),
            lambda: list(calls.operator.FetchBlob(operator_pb2.OperatorBlobRequest(), timeout=10)),
            lambda: calls.operator.PutBlob(iter([operator_pb2.PutBlobChunk(data=b"x")]), timeout=10),
        ):
            assert refusal(call).code is Code.WRONG_ROLE


@pytest.mark.parametrize("folder", ["operator", "aggregator", "broker"])
def test_other_roles_cannot_act_as_a_device(fleet: RunningFleet, folder: str) -> None:
    with fleet.calls(Credentials.read(fleet.folder / folder)) as calls:
        assert refusal(lambda: status(calls)).code is Code.WRONG_ROLE
        request = rounds_pb2.CheckInRequest(round_id=1, nonce=bytes(16))
        assert refusal(lambda: calls.rounds.CheckIn(request, timeout=10)).code is Code.WRONG_ROLE
        chunks = iter([rounds_pb2.ReportChunk(round_id=1, data=b"x")])
        assert refusal(lambda: calls.rounds.PutReport(chunks, timeout=10)).code is Code.WRONG_ROLE


def test_revoked_device_is_refused_on_its_open_connection(fleet: RunningFleet) -> None:
    device = fleet.device("dev-lost")
    with fleet.calls(device) as calls:
        status(calls)
        with fleet.operator() as operator:
            operator.revoke("dev-lost", "lost")
        assert refusal(lambda: status(calls)).code is Code.CERTIFICATE_REVOKED
    with fleet.calls(device) as calls:
        assert refusal(lambda: status(calls)).code is Code.CERTIFICATE_REVOKED


def test_renewed_certificate_works_and_names_the_same_device(fleet: RunningFleet) -> None:
    device, key = fleet.device("dev-renew"), identity.new_key()
    with fleet.calls(device) as calls:
        request = fleet_pb2.RenewRequest(csr_der=identity.make_csr(key))
        reply = refusals(lambda: calls.fleet.Renew(request, timeout=10))
        assert (
            refusal(lambda: calls.fleet.Renew(fleet_pb2.RenewRequest(csr_der=b"x"), timeout=10)).code
            is Code.BAD_CSR
        )
    from aggregator.authority import der_to_pem

    name, _ = identity.verify_chain(reply.chain_der, fleet.authority.der, "home", now_ms())
    assert name.id == "dev-renew"
    renewed = Credentials(identity.key_pem(key), b"".join(der_to_pem(der) for der in reply.chain_der))
    with fleet.calls(renewed) as calls:
        status(calls)


def test_status_is_shown_to_the_operator(fleet: RunningFleet) -> None:
    device = fleet.device("dev-status")
    message = fleet_pb2.DeviceStatus(runtime_version="9.9", refusals={"ticket_forged": 2})
    with fleet.calls(device) as calls:
        refusals(lambda: calls.fleet.ReportStatus(message, timeout=10))
    with fleet.operator() as operator:
        shown = next(client for client in operator.clients() if client.client_id == "dev-status")
    assert (shown.runtime_version, dict(shown.refusals)) == ("9.9", {"ticket_forged": 2})
    assert shown.last_seen_ms > 0


def test_blob_is_fetched_from_any_offset(fleet: RunningFleet, device: Credentials) -> None:
    data = bytes(range(256)) * 6000  # 1.5 MB: several chunks
    with fleet.operator() as operator:
        digest = operator.put(data)
        assert operator.put(data) == digest, "a second time nothing is sent"
        assert b"".join(operator.fetch(digest)) == data
    with fleet.calls(device) as calls:
        for offset in (0, 1, 700_001, len(data)):
            request = fleet_pb2.BlobRequest(digest=digest, offset=offset)
            chunks = list(calls.fleet.FetchBlob(request, timeout=10))
            assert b"".join(chunk.data for chunk in chunks) == data[offset:]
            assert [chunk.total_bytes for chunk in chunks] == [len(data)] + [0] * (len(chunks) - 1)
        beyond = fleet_pb2.BlobRequest(digest=digest, offset=len(data) + 1)
        assert refusal(lambda: list(calls.fleet.FetchBlob(beyond, timeout=10))).code is Code.WRONG_OFFSET
        for unknown in (hashlib.sha256(b"").digest(), b"", b"../../../../etc/passwd"):
            request = fleet_pb2.BlobRequest(digest=unknown)
            assert refusal(partial(fetch, calls, request)).code is Code.UNKNOWN_BLOB


def test_oversized_message_is_refused(fleet: RunningFleet) -> None:
    with fleet.calls(Credentials.read(fleet.folder / "operator")) as calls:
        chunks = iter([operator_pb2.PutBlobChunk(data=bytes(5_000_000))])
        with pytest.raises(grpc.RpcError) as caught:
            calls.operator.PutBlob(chunks, timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        chunks = iter([operator_pb2.PutBlobChunk(data=bytes(2_000_000))])
        assert refusal(lambda: calls.operator.PutBlob(chunks, timeout=10)).code is Code.OUT_OF_RANGE


def test_unknown_round_and_malformed_requests_are_refused(fleet: RunningFleet, device: Credentials) -> None:
    with fleet.calls(device) as calls:
        unknown = rounds_pb2.CheckInRequest(round_id=7, nonce=bytes(16))
        assert refusal(lambda: calls.rounds.CheckIn(unknown, timeout=10)).code is Code.UNKNOWN_ROUND
        short = rounds_pb2.CheckInRequest(round_id=7, nonce=b"short")
        assert refusal(lambda: calls.rounds.CheckIn(short, timeout=10)).code is Code.MALFORMED
        assert refusal(lambda: calls.rounds.PutReport(iter([]), timeout=10)).code is Code.MALFORMED


def test_new_server_certificate_is_used_without_a_restart(fleet: RunningFleet, device: Credentials) -> None:
    import ssl

    def served() -> str:
        context = ssl.create_default_context(cadata=fleet.authority.pem.decode())
        host, port = fleet.endpoints["enrollment"][0].split(":")
        import socket

        with (
            socket.create_connection((host, int(port)), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=identity.server_name("home")) as secured,
        ):
            certificate = secured.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    before = served()
    name = identity.Name("home", identity.Role.AGGREGATOR, "main")
    new = Credentials.issued(fleet.authority, name, now_ms(), 30)
    (fleet.folder / "aggregator" / "cert.key").write_bytes(new.key)
    (fleet.folder / "aggregator" / "cert.pem").write_bytes(new.chain)
    wait_until(lambda: served() != before)
    with fleet.calls(device) as calls:
        status(calls)
