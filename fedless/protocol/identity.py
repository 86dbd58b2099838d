"""Names in certificates, certificate requests, and the checks of both.

A name is a SPIFFE id, `spiffe://<fleet>/<role>/<id>`, and is set by the authority only. The
common name is the id for devices (the broker takes its user name from it) and begins with `@`
for every other role, which ids cannot. Chains are verified with
`cryptography.x509.verification`, never by hand. Called by the authority, by both services, by
the participant and by the helper. No clock: the moment to check at is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import ID, RESERVED_IDS

BACKDATED = datetime(1970, 1, 1, tzinfo=UTC)
CHAIN_MAX = 4
DER_BYTES_MAX = 16 * 1024
Roots = bytes | Sequence[bytes]
"""The fleet's authority (DER); or, while one follows another, all of them."""


class Role(StrEnum):
    """Who a certificate speaks for."""

    AGGREGATOR = "aggregator"
    DEVICE = "device"
    FUNCTION = "function"
    HELPER = "helper"
    OPERATOR = "operator"
    BROKER = "broker"


CLIENT_ROLES = frozenset({Role.DEVICE, Role.FUNCTION})
SERVER_ROLES = frozenset({Role.AGGREGATOR, Role.HELPER, Role.BROKER})


@dataclass(frozen=True)
class Name:
    """Whom a certificate names: fleet, role and id."""

    fleet: str
    role: Role
    id: str

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return f"spiffe://{self.fleet}/{self.role}/{self.id}"

    @property
    def common_name(self) -> str:
        """The id of a device; `@role-id` of all others (at most 64 characters)."""
        if self.role is Role.DEVICE:
            return self.id
        return f"@{self.role}" if self.role is Role.AGGREGATOR else f"@{self.role}-{self.id}"[:64]


def server_name(fleet: str) -> str:
    """The DNS name in every server certificate of a fleet, so that addresses may change."""
    return f"aggregator.{fleet}.fedless"


def check_id(text: str, what: str = "id") -> str:
    """The text, if it is an id that is not reserved; raises `PeerError` RESERVED_NAME."""
    if not ID.fullmatch(text) or text in RESERVED_IDS:
        detail = (
            f"Expected a {what} of 1 to 64 characters a-z, 0-9 and '-', not reserved; found {text[:80]!r}."
        )
        raise PeerError(Code.RESERVED_NAME, detail, fix="Choose another name.")
    return text


def parse_uri(uri: str) -> Name:
    """The name in a SPIFFE id; raises `PeerError` FOREIGN_CERTIFICATE."""
    parts = uri.split("/")
    if len(parts) != 5 or parts[:2] != ["spiffe:", ""] or parts[3] not in set(Role):  # noqa: PLR2004
        raise PeerError(Code.FOREIGN_CERTIFICATE, "Its SPIFFE id is not of the form spiffe://fleet/role/id.")
    if not ID.fullmatch(parts[2]) or not ID.fullmatch(parts[4]):
        raise PeerError(Code.FOREIGN_CERTIFICATE, "Its SPIFFE id has characters that ids cannot have.")
    return Name(parts[2], Role(parts[3]), parts[4])


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key from the operating system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM; the caller stores it with mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request (DER) for the key; it names nobody, since the authority names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def check_csr(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key that a request proves to own; names in it are ignored. Raises BAD_CSR."""
    try:
        if len(csr_der) > DER_BYTES_MAX:
            raise PeerError(Code.BAD_CSR, f"Expected at most {DER_BYTES_MAX} bytes, found {len(csr_der)}.")
        csr = x509.load_der_x509_csr(csr_der)
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (ValueError, TypeError, x509.UnsupportedGeneralNameType) as error:
        raise PeerError(Code.BAD_CSR, "Expected PKCS#10 in DER.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or not valid:
        raise PeerError(Code.BAD_CSR, "Expected a P-256 key and a signature by it.")
    return key


def public_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key's SubjectPublicKeyInfo in DER: what "the same key" means."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def leaf_builder(
    name: Name, key: ec.EllipticCurvePublicKey, issuer: x509.Certificate, not_after: datetime
) -> x509.CertificateBuilder:
    """A leaf certificate of the fleet, ready to be signed by its authority.

    Backdated to 1970, so that a slow clock always connects. Servers also get the fleet's fixed
    DNS name; the extended key usage is serverAuth and clientAuth for servers, clientAuth else.
    """
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.uri)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if name.role in SERVER_ROLES:
        names.append(x509.DNSName(server_name(name.fleet)))
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = x509.CertificateBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.common_name)])
    )
    builder = builder.issuer_name(issuer.subject).public_key(key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(BACKDATED).not_valid_after(not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
    )


def authority_certificate(
    fleet: str, key: ec.EllipticCurvePrivateKey, not_after: datetime, *, follows: bool = False
) -> x509.Certificate:
    """A self-signed P-256 certificate for a fleet's authority; it may sign leaves only.

    One that `follows` another is told from it by a serial number in its name: verifiers look issuers up by name.
    """
    public = key.public_key()
    names = [x509.NameAttribute(NameOID.COMMON_NAME, f"@authority-{fleet}"[:64])]
    if follows:
        mark = x509.SubjectKeyIdentifier.from_public_key(public).digest.hex()
        names.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, mark))
    subject = x509.Name(names)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(BACKDATED).not_valid_after(not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return builder.sign(key, hashes.SHA256())


def authority_key(authority_der: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key of an authority's certificate. Raises `PeerError` FOREIGN_CERTIFICATE."""
    try:
        key = x509.load_der_x509_certificate(authority_der).public_key()
    except (ValueError, TypeError) as error:
        raise PeerError(Code.FOREIGN_CERTIFICATE, "An authority's certificate cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PeerError(Code.FOREIGN_CERTIFICATE, "An authority's key is not a P-256 key.")
    return key


def certificates(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM text as DER, at least one. Raises `PeerError` FOREIGN_CERTIFICATE."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise PeerError(Code.FOREIGN_CERTIFICATE, "Expected certificates in PEM.") from error
    return tuple(each.public_bytes(serialization.Encoding.DER) for each in found)


def verify_chain(
    chain_der: Sequence[bytes], authority: Roots, fleet: str, at_ms: int
) -> tuple[Name, ec.EllipticCurvePublicKey]:
    """Whom a chain (leaf first) names, and the leaf's key, if the fleet's authority (one of them) signed it.

    `at_ms` is the moment (Unix ms) at which all certificates must be valid. Raises `PeerError`
    FOREIGN_CERTIFICATE, or CERTIFICATE_EXPIRED when only the end date is the trouble.
    """
    if not 1 <= len(chain_der) <= CHAIN_MAX or any(len(der) > DER_BYTES_MAX for der in chain_der):
        raise PeerError(Code.FOREIGN_CERTIFICATE, f"Expected a chain of 1 to {CHAIN_MAX} certificates.")
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain_der]
        ders = [authority] if isinstance(authority, bytes) else authority
        roots = [x509.load_der_x509_certificate(der) for der in ders]
        leaf, rest = certificates[0], [c for c in certificates[1:] if c not in roots]
        builder = verification.PolicyBuilder().store(verification.Store(roots)).time(moment)
        builder.build_client_verifier().verify(leaf, rest)
    except verification.VerificationError as error:
        if leaf.not_valid_after_utc < moment and any(_signed_by(leaf, root) for root in roots):
            detail = f"It ended at {leaf.not_valid_after_utc:%F %R} UTC; the clock says {moment:%F %R}."
            raise PeerError(
                Code.CERTIFICATE_EXPIRED, detail, fix="Check the clock, then enroll again."
            ) from error
        raise PeerError(
            Code.FOREIGN_CERTIFICATE, "Its chain does not lead to this fleet's authority."
        ) from error
    except (ValueError, TypeError) as error:
        raise PeerError(Code.FOREIGN_CERTIFICATE, "It cannot be read.") from error
    return _named(leaf, fleet)


def certificate_name(certificate: x509.Certificate) -> Name:
    """The one SPIFFE id in a certificate that is already trusted."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise PeerError(Code.FOREIGN_CERTIFICATE, "It has no SPIFFE id.") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise PeerError(Code.FOREIGN_CERTIFICATE, f"Expected one SPIFFE id, found {len(uris)}.")
    return parse_uri(uris[0])


def _named(leaf: x509.Certificate, fleet: str) -> tuple[Name, ec.EllipticCurvePublicKey]:
    name, key = certificate_name(leaf), leaf.public_key()
    if name.fleet != fleet:
        raise PeerError(Code.FOREIGN_CERTIFICATE, f"Expected fleet {fleet!r}, found {name.fleet!r}.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PeerError(Code.FOREIGN_CERTIFICATE, "Its key is not a P-256 key.")
    return name, key


def _signed_by(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
