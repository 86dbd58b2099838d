"""Certificates: whom the authority names, whom the service lets in, and whom not."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from aggregator.authority import Authority, Callers, der_to_pem
from fedless.protocol import identity
from fedless.protocol.errors import Code, LocalError, PeerError

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000
DEVICE = identity.Name("home", identity.Role.DEVICE, "dev-1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("home", NOW_MS)


def leaf_pem(authority: Authority, name: identity.Name = DEVICE, days: int = 90) -> tuple[bytes, str]:
    issued = authority.issue(name, identity.make_csr(identity.new_key()), NOW_MS, days)
    return der_to_pem(issued.chain_der[0]), issued.serial


def code_of(callers: Callers, pem: bytes, now_ms: int = NOW_MS) -> Code:
    with pytest.raises(PeerError) as caught:
        callers.admit(pem, now_ms)
    return caught.value.code


def test_caller_is_whom_the_certificate_names(authority: Authority) -> None:
    pem, serial = leaf_pem(authority)
    caller = Callers(authority.der, "home").admit(pem, NOW_MS)
    assert (caller.name, caller.serial, caller.not_after_ms) == (DEVICE, serial, NOW_MS + 90 * DAY_MS)


def test_certificate_of_another_fleet_is_refused(authority: Authority) -> None:
    pem, _ = leaf_pem(Authority.create("home", NOW_MS))  # the same name, another key
    assert code_of(Callers(authority.der, "home"), pem) is Code.FOREIGN_CERTIFICATE
    own, _ = leaf_pem(authority)
    assert code_of(Callers(authority.der, "garden"), own) is Code.FOREIGN_CERTIFICATE


def test_expired_certificate_is_refused_also_on_an_old_connection(authority: Authority) -> None:
    callers = Callers(authority.der, "home")
    pem, _ = leaf_pem(authority, days=1)
    callers.admit(pem, NOW_MS)  # known from now on
    assert code_of(callers, pem, NOW_MS + 2 * DAY_MS) is Code.CERTIFICATE_EXPIRED


def test_revoked_certificate_is_refused_also_on_an_old_connection(authority: Authority) -> None:
    callers = Callers(authority.der, "home")
    pem, serial = leaf_pem(authority)
    other, _ = leaf_pem(authority)
    callers.admit(pem, NOW_MS)
    callers.denied = frozenset({serial})
    assert code_of(callers, pem) is Code.CERTIFICATE_REVOKED
    assert callers.admit(other, NOW_MS).name == DEVICE


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_nonsense_is_refused(authority: Authority, pem: bytes) -> None:
    assert code_of(Callers(authority.der, "home"), pem) is Code.FOREIGN_CERTIFICATE


def test_names_in_a_request_are_not_copied(authority: Authority) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    wish = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "@aggregator")])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://home/operator/main")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(wish).add_extension(names, critical=False)
    der = csr.sign(identity.new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    issued = authority.issue(DEVICE, der, NOW_MS, 1)
    leaf = x509.load_der_x509_certificate(issued.chain_der[0])
    assert leaf.subject.rfc4514_string() == "CN=dev-1"
    assert identity.certificate_name(leaf) == DEVICE


def test_certificate_ends_with_the_authority(authority: Authority) -> None:
    issued = authority.issue(DEVICE, identity.make_csr(identity.new_key()), NOW_MS, 365 * 100)
    assert issued.not_after_ms == NOW_MS + 20 * 365 * DAY_MS


def test_revocation_list_names_the_serials(authority: Authority) -> None:
    crl = x509.load_pem_x509_crl(authority.revocation_list(["ff", "1a2b"], NOW_MS))
    assert {entry.serial_number for entry in crl} == {0xFF, 0x1A2B}
    certificate = x509.load_der_x509_certificate(authority.der)
    key = certificate.public_key()
    assert crl.is_signature_valid(key)  # type: ignore[arg-type]
    assert crl.next_update_utc == certificate.not_valid_after_utc


def test_authority_is_loaded_as_it_was_stored(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    (tmp_path / "authority.key").write_bytes(authority.key_pem)
    loaded = Authority.load(tmp_path, "home")
    assert (loaded.der, loaded.digest) == (authority.der, authority.digest)
    pem, _ = leaf_pem(loaded)
    assert Callers(authority.der, "home").admit(pem, NOW_MS).name == DEVICE


def test_key_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    (tmp_path / "authority.key").write_bytes(Authority.create("home", NOW_MS).key_pem)
    with pytest.raises(LocalError) as caught:
        Authority.load(tmp_path, "home")
    assert caught.value.code is Code.STATE_CORRUPT


def test_missing_authority_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        Authority.load(tmp_path, "home")
    assert caught.value.code is Code.STATE_MISSING
