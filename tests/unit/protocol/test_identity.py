"""Certificates of a fleet: who is named, and every way in which a certificate is refused."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fedless.protocol import identity as ids
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.identity import Name, Role

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY_MS = 86_400_000


@dataclass
class Authority:
    fleet: str = "acme"

    def __post_init__(self) -> None:
        self.key = ids.new_key()
        self.certificate = ids.authority_certificate(self.fleet, self.key, NOW + timedelta(days=3650))
        self.der = self.certificate.public_bytes(serialization.Encoding.DER)

    def issue(self, name: Name, days: int = 30) -> list[bytes]:
        key = ids.check_csr(ids.make_csr(ids.new_key()))
        leaf = ids.leaf_builder(name, key, self.certificate, NOW + timedelta(days=days))
        return [leaf.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER), self.der]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def refused(chain: list[bytes], authority: Authority, at_ms: int = NOW_MS, fleet: str = "acme") -> Code:
    with pytest.raises(PeerError) as error:
        ids.verify_chain(chain, authority.der, fleet, at_ms)
    return error.value.code


@pytest.mark.parametrize("role", list(Role))
def test_a_chain_of_every_role_names_its_holder(authority: Authority, role: Role) -> None:
    name = Name("acme", role, "pi-1")
    assert ids.verify_chain(authority.issue(name), authority.der, "acme", NOW_MS)[0] == name


def test_a_slow_clock_always_connects(authority: Authority) -> None:
    chain = authority.issue(Name("acme", Role.DEVICE, "pi-1"))
    assert ids.verify_chain(chain, authority.der, "acme", 0)[0].id == "pi-1"


def test_certificate_of_another_fleet_is_refused(authority: Authority) -> None:
    other = Authority()
    chain = other.issue(Name("acme", Role.DEVICE, "pi-1"))
    assert refused(chain, authority) is Code.FOREIGN_CERTIFICATE
    assert refused([chain[0]], authority) is Code.FOREIGN_CERTIFICATE
    named_so = authority.issue(Name("other", Role.DEVICE, "pi-1"))
    assert refused(named_so, authority) is Code.FOREIGN_CERTIFICATE


def test_expired_certificate_is_refused_with_an_error_of_its_own(authority: Authority) -> None:
    chain = authority.issue(Name("acme", Role.DEVICE, "pi-1"), days=30)
    assert refused(chain, authority, NOW_MS + 31 * DAY_MS) is Code.CERTIFICATE_EXPIRED


def test_a_leaf_cannot_sign_another_leaf(authority: Authority) -> None:
    key = ids.new_key()
    name = Name("acme", Role.DEVICE, "pi-1")
    builder = ids.leaf_builder(name, key.public_key(), authority.certificate, NOW + timedelta(days=30))
    middle = builder.sign(authority.key, hashes.SHA256())
    forged = ids.leaf_builder(
        Name("acme", Role.OPERATOR, "root-1"), ids.new_key().public_key(), middle, NOW + timedelta(days=9)
    ).sign(key, hashes.SHA256())
    chain = [c.public_bytes(serialization.Encoding.DER) for c in (forged, middle)]
    assert refused([*chain, authority.der], authority) is Code.FOREIGN_CERTIFICATE


@pytest.mark.parametrize("chain", [[], [b""], [b"x" * 100], [b"x" * 20_000], [b"0"] * 5])
def test_what_is_not_a_chain_is_refused(authority: Authority, chain: list[bytes]) -> None:
    assert refused(chain, authority) is Code.FOREIGN_CERTIFICATE


@pytest.mark.parametrize(
    "text", ["", "Pi", "-pi", "pi-", "a" * 65, "aggregator", "@aggregator", "pi/..", "pí"]
)
def test_device_named_like_a_reserved_identity_is_refused(text: str) -> None:
    with pytest.raises(PeerError) as error:
        ids.check_id(text)
    assert error.value.code is Code.RESERVED_NAME


def test_only_a_device_has_a_common_name_that_ids_can_have() -> None:
    for role in Role:
        common_name = Name("acme", role, "pi-1").common_name
        assert common_name.startswith("@") == (role is not Role.DEVICE)
        assert len(common_name) <= 64


@pytest.mark.parametrize(
    "uri",
    ["spiffe://acme/device", "spiffe://acme/king/pi", "https://acme/device/pi", "spiffe://a b/device/pi", ""],
)
def test_a_foreign_uri_names_nobody(uri: str) -> None:
    with pytest.raises(PeerError) as error:
        ids.parse_uri(uri)
    assert error.value.code is Code.FOREIGN_CERTIFICATE


def _csr(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def test_a_request_needs_a_p256_key_and_its_own_signature() -> None:
    good = ids.make_csr(ids.new_key())
    bad_signature = bytearray(good)
    bad_signature[-1] ^= 1
    others = [
        _csr(ed25519.Ed25519PrivateKey.generate()),
        _csr(ec.generate_private_key(ec.SECP384R1())),
        _csr(rsa.generate_private_key(65537, 2048)),
        bytes(bad_signature),
        b"",
        b"x" * 20_000,
    ]
    for csr in others:
        with pytest.raises(PeerError) as error:
            ids.check_csr(csr)
        assert error.value.code is Code.BAD_CSR
    assert ids.public_der(ids.check_csr(good))


def test_names_in_a_request_are_ignored() -> None:
    key = ids.new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aggregator")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    public = ids.check_csr(csr.public_bytes(serialization.Encoding.DER))
    assert ids.public_der(public) == ids.public_der(key.public_key())


def test_a_key_is_stored_as_pkcs8() -> None:
    assert ids.key_pem(ids.new_key()).startswith(b"-----BEGIN PRIVATE KEY-----")
