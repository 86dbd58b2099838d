"""The fleet's authority: its key signs certificates and revocation lists; and who a caller is.

Files and signatures only: claims and enrolled clients are `enrollment.py`'s. Every certificate
names its holder by `identity.Name`; nothing is copied from a request but its public key. Called
by `founding.py` (a new fleet), `enrollment.py` and the services.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedless.protocol import identity
from fedless.protocol.claim import authority_digest
from fedless.protocol.crypto import ecdsa_sign
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.secagg.messages import Member

AUTHORITY_DAYS = 20 * 365
SERVER_DAYS = 5 * 365
CACHED_CALLERS = 10_000


@dataclass(frozen=True)
class Issued:
    """A signed certificate: its chain (DER, leaf first, authority last), serial (hex) and end (Unix ms)."""

    chain_der: tuple[bytes, ...]
    serial: str
    not_after_ms: int

    @property
    def chain_pem(self) -> bytes:
        """The chain as PEM, leaf first."""
        return b"".join(der_to_pem(der) for der in self.chain_der)


@dataclass(frozen=True)
class Caller:
    """Whose certificate a call came with."""

    name: identity.Name
    serial: str
    not_after_ms: int


class Authority:
    """A fleet's certificate authority with its key (P-256)."""

    def __init__(self, fleet: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.fleet = fleet
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, fleet: str, now_ms: int, *, follows: bool = False) -> Authority:
        """A new authority with a fresh key, good for twenty years; `follows` another one of this fleet or not."""
        key, end = identity.new_key(), _days_after(now_ms, AUTHORITY_DAYS)
        return cls(fleet, identity.authority_certificate(fleet, key, end, follows=follows), key)

    @classmethod
    def load(cls, directory: Path, fleet: str, name: str = "authority") -> Authority:
        """The authority in `authority.pem` and `authority.key` (`name` is the stem); raises `LocalError`."""
        try:
            certificate = x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())
            key = serialization.load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
        except FileNotFoundError as error:
            detail = f"Expected {name}.pem and {name}.key in {directory}."
            raise LocalError(Code.STATE_MISSING, detail, fix="Check authority.directory.") from error
        except (ValueError, TypeError, OSError) as error:
            detail = f"Expected PEM files in {directory}; they cannot be read."
            raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore them from a back-up.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            detail = f"{name}.key in {directory} is not the key of {name}.pem."
            raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore them from a back-up.")
        return cls(fleet, certificate, key)

    @property
    def der(self) -> bytes:
        """The authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The authority's certificate, as `/ca.pem` serves it."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The authority's private key; the caller stores it with mode 0600."""
        return identity.key_pem(self._key)

    @property
    def digest(self) -> str:
        """The authority's name in a claim."""
        return authority_digest(self.der)

    def sign(self, message: bytes) -> bytes:
        """ECDSA over a message that is no certificate (`succession`)."""
        return ecdsa_sign(self._key, message)

    def signed(self, leaf_der: bytes) -> bool:
        """Whether this authority signed a certificate."""
        try:
            x509.load_der_x509_certificate(leaf_der).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def issue(self, name: identity.Name, csr_der: bytes, now_ms: int, days: int) -> Issued:
        """A certificate for the key of a request; raises `PeerError` BAD_CSR."""
        return self.issue_until(name, csr_der, round(_days_after(now_ms, days).timestamp() * 1000))

    def issue_until(self, name: identity.Name, csr_der: bytes, until_ms: int) -> Issued:
        """As `issue`, with its end (whole seconds, rounded up)."""
        wanted = datetime.fromtimestamp(-(-until_ms // 1000), UTC)
        end = min(wanted, self._certificate.not_valid_after_utc)
        builder = identity.leaf_builder(name, identity.check_csr(csr_der), self._certificate, end)
        leaf = builder.sign(self._key, hashes.SHA256())
        chain = (leaf.public_bytes(serialization.Encoding.DER), self.der)
        return Issued(chain, _serial(leaf), round(end.timestamp() * 1000))

    def renewed(self, chain_pem: bytes, key_pem: bytes, name: identity.Name, now_ms: int) -> Issued | None:
        """A new certificate for a server's key if a third of `SERVER_DAYS` or less is left; else None.

        Also if the one that it has is another authority's. Raises `LocalError` STATE_CORRUPT for a chain or key that is
        none.
        """
        try:
            leaf = x509.load_pem_x509_certificate(chain_pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            detail = f"The {name.role}'s cert.pem or cert.key cannot be read."
            raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore them from a back-up.") from error
        own = self.signed(leaf.public_bytes(serialization.Encoding.DER))
        if own and leaf.not_valid_after_utc > _days_after(now_ms, SERVER_DAYS // 3):
            return None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise LocalError(Code.STATE_CORRUPT, f"The {name.role}'s cert.key is not a P-256 key.")
        return self.issue(name, identity.make_csr(key), now_ms, SERVER_DAYS)

    def revocation_list(self, serials: Iterable[str], now_ms: int) -> bytes:
        """A CRL (PEM) of the serials (hex).

        It is written anew at every start and every revocation, so it never goes stale: its next
        update lies as far away as the authority's end, since a broker refuses everybody under an old list.
        """
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(identity.BACKDATED).next_update(self._certificate.not_valid_after_utc)
        own_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(own_key, critical=False)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Callers:
    """Who is calling. A certificate is verified once; its end and the deny list are checked on every call.

    `on_operator` hears of each call by an operator that is admitted.
    """

    def __init__(self, authority: identity.Roots, fleet: str) -> None:
        self._authority = authority
        self._fleet = fleet
        self._known: dict[bytes, Caller] = {}
        self.denied: frozenset[str] = frozenset()
        self.on_operator: Callable[[Caller], None] = lambda _: None

    def follow(self, authority: identity.Roots) -> None:
        """Believe these from the next call on; whoever was admitted before is verified again."""
        self._authority = authority
        self._known.clear()

    def admit(self, leaf_pem: bytes, now_ms: int) -> Caller:
        """The caller that a certificate (PEM) names.

        Raises `PeerError` FOREIGN_CERTIFICATE, CERTIFICATE_EXPIRED or CERTIFICATE_REVOKED.
        """
        caller = self._known.get(leaf_pem)
        if caller is None or caller.not_after_ms <= now_ms:
            caller = self.read(leaf_pem, now_ms)
            if len(self._known) >= CACHED_CALLERS:
                self._known.clear()
            self._known[leaf_pem] = caller
        self.check(caller)
        if caller.name.role is identity.Role.OPERATOR:
            self.on_operator(caller)
        return caller

    def check(self, caller: Caller) -> None:
        """Raises `PeerError` CERTIFICATE_REVOKED for one who was admitted and is denied by now."""
        if caller.serial in self.denied:
            raise PeerError(Code.CERTIFICATE_REVOKED, f"It was {caller.name.id}'s.", fix="Ask the operator.")

    def member(self, certificate_der: bytes, at_ms: int) -> Member:
        """Whom a certificate makes a member of a cohort at a moment; raises as `admit`, or WRONG_ROLE."""
        name, key = identity.verify_chain([certificate_der], self._authority, self._fleet, at_ms)
        if name.role not in identity.CLIENT_ROLES:
            raise PeerError(Code.WRONG_ROLE, f"A {name.role} cannot be a member of a cohort.")
        if _serial(x509.load_der_x509_certificate(certificate_der)) in self.denied:
            raise PeerError(Code.CERTIFICATE_REVOKED, f"It was {name.id}'s.")
        return Member(name.id, name.role is identity.Role.DEVICE, key)

    def read(self, leaf_pem: bytes, now_ms: int) -> Caller:
        """Whom a certificate (PEM) names, denied or not; raises as `admit`."""
        try:
            leaf = x509.load_pem_x509_certificate(leaf_pem)
        except ValueError as error:
            raise PeerError(Code.FOREIGN_CERTIFICATE, "It cannot be read.") from error
        der = leaf.public_bytes(serialization.Encoding.DER)
        name, _ = identity.verify_chain([der], self._authority, self._fleet, now_ms)
        return Caller(name, _serial(leaf), round(leaf.not_valid_after_utc.timestamp() * 1000))


def der_to_pem(certificate_der: bytes) -> bytes:
    """A certificate as PEM."""
    return x509.load_der_x509_certificate(certificate_der).public_bytes(serialization.Encoding.PEM)


def _serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def _days_after(now_ms: int, days: int) -> datetime:
    return datetime.fromtimestamp(now_ms // 1000, UTC) + timedelta(days=days)
