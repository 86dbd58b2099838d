"""*Pure.* The claim code: what a device needs to join a fleet, once.

`fedless1.<host:port>.<authority, 26>.<secret, 26>.<checksum, 4>`, parsed from the right since a
host name has dots. `authority` is the first 130 bits of the SHA-256 of the authority's
certificate (DER) in base32; `secret` is 128 random bits in base32; the checksum (20 bits of
SHA-256 over all that is before it) finds typing errors, and protects nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field

from fedless.protocol.errors import Code, PeerError

PREFIX = "fedless1"
SECRET_BYTES = 16
_BASE32 = re.compile(r"[a-z2-7]{26}")
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Claim:
    """A parsed claim: the enrollment port's address, the authority's digest, the secret."""

    address: str
    authority: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The claim as people and files carry it; it is a secret."""
        body = f"{PREFIX}.{self.address}.{self.authority}.{self.secret}"
        return f"{body}.{_checksum(body)}"


def base32(data: bytes) -> str:
    """Lower-case base32 without padding."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def authority_digest(certificate_der: bytes) -> str:
    """The 26 characters that name an authority in a claim."""
    return base32(hashlib.sha256(certificate_der).digest())[:26]


def secret_text(random: bytes) -> str:
    """The secret's 26 characters from 16 random bytes."""
    if len(random) != SECRET_BYTES:
        message = f"a claim's secret takes {SECRET_BYTES} random bytes, not {len(random)}"
        raise ValueError(message)
    return base32(random)


def secret_hash(secret: str) -> bytes:
    """What the aggregator stores: SHA-256 of the secret (128 random bits need no stretching)."""
    return hashlib.sha256(b"fedless-claim\0" + secret.encode("ascii", "replace")).digest()


def parse_claim(text: str) -> Claim:
    """The claim in a text, with surrounding space removed. Raises `PeerError` CLAIM_MALFORMED.

    The error says which part is wrong and never repeats the text, which is a secret.
    """
    parts = text.strip().rsplit(".", 3)
    if len(parts) != 4 or not parts[0].startswith(PREFIX + "."):  # noqa: PLR2004
        raise _malformed(f"Expected '{PREFIX}.<host:port>.<26 characters>.<26 characters>.<4 characters>'.")
    head, authority, secret, checksum = parts
    address = head[len(PREFIX) + 1 :]
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise _malformed("The part after 'fedless1.' must be an address, host:port.")
    authority, secret, checksum = authority.lower(), secret.lower(), checksum.lower()
    if _checksum(f"{PREFIX}.{address}.{authority}.{secret}") != checksum:
        raise _malformed("The last four characters do not fit the rest: a character is mistyped or missing.")
    if not _BASE32.fullmatch(authority) or not _BASE32.fullmatch(secret):
        raise _malformed("The authority and the secret must be 26 characters of a-z and 2-7 each.")
    return Claim(address, authority, secret)


def _checksum(body: str) -> str:
    return base32(hashlib.sha256(body.encode("utf-8")).digest())[:4]


def _malformed(detail: str) -> PeerError:
    return PeerError(
        Code.CLAIM_MALFORMED, detail, fix="Copy the whole line that `fedless fleet claim` printed."
    )
