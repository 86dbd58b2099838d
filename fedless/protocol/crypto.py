"""*Pure.* Key agreement, derivation, AEAD, streams, signatures: the only user of `cryptography` primitives.

Used by every party. Nothing here draws randomness, except HPKE's sender (`hpke_seal`), which the library
does not let us feed. numpy is not imported, and of `cryptography` only what a ticket's signature needs until more is
called for (a participant imports this module before anything else); streams are added to vectors by
`fedless.protocol.prg`.

Encodings (protocol.md section 5):

- `enc(x1, ...)`: for each x a big-endian u32 length and the bytes. An int is 8 bytes big-endian (u64), a str
  its UTF-8. A tuple is a structure: its fields follow one another. A list is its count (as an int), then its
  elements.
- `info(label, ...)` is the specification's I: `"fedless-sa1/" || label || 0x00 || enc(...)`.
- `digest(label, ...)` is its H: SHA-256 of `info(label, ...)`.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

from fedless.protocol.errors import Code, LocalError, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.hazmat.primitives.ciphers import CipherContext
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    Item = int | bytes | str | Sequence["Item"]
    Agreement = Callable[[bytes], bytes]

P256Public = ec.EllipticCurvePublicKey
P256Private = ec.EllipticCurvePrivateKey
"""The public key of a client's certificate; the name spares others an import of `cryptography`."""
VERSION = b"fedless-sa1/"
KEY_BYTES = 32
"""Length of every seed, chain key, X25519 key, HKDF output and SHA-256 digest."""
NONCE_BYTES = 12
TAG_BYTES = 16
HPKE_OVERHEAD_BYTES = 48
"""An HPKE envelope is this much longer than its plaintext: encapsulated key 32, tag 16."""


class Label(StrEnum):
    """One label per use, never two uses of one label; docs/security.md lists the fields under each."""

    # -- derived with HKDF from a member's chain key
    CHANNEL_KEY = "chan-sk"
    MASK_KEY = "mask-sk"
    SELF_SEED = "self-sk"
    NEXT = "next"
    COEFFICIENTS = "shamir-coefficients"
    BOX_NONCE = "box-nonce"
    # -- derived with HKDF from a shared secret, a self seed or a helper seed
    SHARE_KEY = "share-key"
    PAIR_MASK = "pair-mask"
    SELF_MASK = "self-mask"
    HELPER_MASK = "helper-mask"
    # -- hashed
    SELF_COMMIT = "self-commit"
    ROSTER_ENTRIES = "roster-entries"
    ROSTER = "roster"
    ENCODING = "encoding"
    ROUND_CTX = "round-ctx"
    HELPER_CTX = "helper-ctx"
    CLOSE_SET = "close-set"
    SEED = "seed"
    START = "start"
    # -- bound as associated data or HPKE info
    SHARE = "share"
    HELPER = "helper"
    # -- signed by a client's certificate key
    EPOCH_KEYS = "epoch-keys"
    MASKED = "masked"
    REPORT = "report"
    # -- signed by the aggregator's ticket key ("active" is also hashed, into the context)
    ACTIVE = "active"
    ROSTER_TIME = "roster-time"
    ROUND_OPEN = "round-open"
    HELPER_OPEN = "helper-open"
    ALIVE = "alive"
    ROUND_RESULT = "round-result"
    # -- signed by the helper's certificate key
    MASK_SUM = "mask-sum"
    HELPER_REPLY = "helper-reply"
    # -- signed by the aggregator's certificate key
    HELPER_CALL = "helper-call"


class Prg(StrEnum):
    """Stream ciphers that expand seeds: the value travels in messages and contexts."""

    AES = "aes-256-ctr"
    CHACHA = "chacha20"


# -- encodings ---------------------------------------------------------------------------------


def enc(*items: Item) -> bytes:
    """Length-prefixed encoding of `items`, as in the module's head. `LocalError` for an int outside u64."""
    return b"".join(_enc(item) for item in items)


def _enc(item: Item) -> bytes:
    if isinstance(item, list):
        return _enc(len(item)) + b"".join(_enc(element) for element in item)
    if isinstance(item, tuple):
        return b"".join(_enc(element) for element in item)
    if isinstance(item, int):
        if not 0 <= item < 1 << 64:
            raise LocalError(Code.OUT_OF_RANGE, "Expected an integer of 64 bits without sign.")
        return b"\x00\x00\x00\x08" + item.to_bytes(8, "big")
    data = item.encode() if isinstance(item, str) else bytes(item)  # type: ignore[arg-type]
    return len(data).to_bytes(4, "big") + data


def info(label: Label, *items: Item) -> bytes:
    """I(label, items): the bytes that are signed, or bound as HKDF info, associated data or HPKE info."""
    return VERSION + label.value.encode() + b"\x00" + enc(*items)


def digest(label: Label, *items: Item) -> bytes:
    """H(label, items): SHA-256 of `info(label, items)`, 32 bytes."""
    return sha256(info(label, *items))


def start_digest(model: bytes, control: bytes) -> bytes:
    """What a masked round is bound to: the model's digest; with a control variate H("start", model, control)."""
    return digest(Label.START, model, control) if control else model


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()


def key_id(public_raw: bytes) -> bytes:
    """Name of a public key in messages: the first 16 bytes of its SHA-256."""
    return sha256(public_raw)[:16]


# -- key derivation and agreement --------------------------------------------------------------


def hkdf(key: bytes, info_bytes: bytes, *, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 (RFC 5869), 32 bytes out. An empty salt is 32 zero bytes, as the RFC says."""
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - plain rounds derive nothing

    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt or None, info=info_bytes).derive(key)


def x25519_public(private_raw: bytes) -> bytes:
    """The 32-byte public key of a 32-byte X25519 private key (RFC 7748)."""
    return x25519.X25519PrivateKey.from_private_bytes(private_raw).public_key().public_bytes_raw()


def x25519_agreement(private_raw: bytes) -> Agreement:
    """What gives the 32-byte shared secret with each public key: one private key is read, for many peers.

    Reading one takes as long as an agreement, since its public key is derived. Raises `PeerError(BAD_POINT)`, and what
    is returned does, for a key of wrong length or a point that gives the all-zero secret.
    """
    try:
        private = x25519.X25519PrivateKey.from_private_bytes(private_raw)
    except ValueError as error:
        raise PeerError(Code.BAD_POINT, _BAD_POINT) from error

    def agree(public_raw: bytes) -> bytes:
        try:
            return private.exchange(x25519.X25519PublicKey.from_public_bytes(public_raw))
        except ValueError as error:
            raise PeerError(Code.BAD_POINT, _BAD_POINT) from error

    return agree


def x25519_shared(private_raw: bytes, public_raw: bytes) -> bytes:
    """The 32-byte shared secret with one peer. Raises `PeerError(BAD_POINT)` as `x25519_agreement`."""
    return x25519_agreement(private_raw)(public_raw)


def check_point(public_raw: bytes) -> None:
    """Raise `PeerError(BAD_POINT)` unless `public_raw` is 32 bytes and not of small order (as zero is)."""
    _probe()(public_raw)


@cache
def _probe() -> Agreement:
    """Of any private key: with a point of small order the shared secret is zero."""
    return x25519_agreement(bytes(range(KEY_BYTES)))


_BAD_POINT = "An X25519 key of small order or wrong length was given."


# -- AEAD and HPKE -----------------------------------------------------------------------------


def seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM: ciphertext and 16-byte tag. The caller never uses a (key, nonce) for two plaintexts."""
    return _aes_gcm(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, nonce: bytes, box: bytes, associated: bytes) -> bytes:
    """Open what `seal` made. Raises `PeerError(BAD_BOX)` if anything in it was changed."""
    try:
        return _aes_gcm(key).decrypt(nonce, box, associated)
    except (InvalidTag, ValueError) as error:
        raise PeerError(Code.BAD_BOX) from error


def _aes_gcm(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - plain rounds seal nothing

    return AESGCM(key)


def hpke_seal(public_raw: bytes, info_bytes: bytes, plaintext: bytes) -> bytes:
    """HPKE base mode (RFC 9180): X25519, HKDF-SHA256, AES-128-GCM: encapsulated key (32) || ciphertext.

    Draws its ephemeral key from the library's own CSPRNG. Raises `PeerError(BAD_POINT)`.
    """
    check_point(public_raw)
    from cryptography.hazmat.primitives import hpke  # noqa: PLC0415 - pairwise rounds never need it

    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
    return suite.encrypt(plaintext, x25519.X25519PublicKey.from_public_bytes(public_raw), info_bytes)


def hpke_open(private_raw: bytes, info_bytes: bytes, envelope: bytes) -> bytes:
    """Open what `hpke_seal` made with the same `info_bytes`. Raises `PeerError(BAD_BOX)`."""
    from cryptography.hazmat.primitives import hpke  # noqa: PLC0415 - pairwise rounds never need it

    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
    private = x25519.X25519PrivateKey.from_private_bytes(private_raw)
    try:
        return suite.decrypt(envelope, private, info_bytes)
    except (InvalidTag, ValueError) as error:
        raise PeerError(Code.BAD_BOX) from error


# -- streams -----------------------------------------------------------------------------------


def stream(prg: Prg, seed: bytes) -> CipherContext:
    """The key stream of a 32-byte seed: zero bytes pushed through `update_into` come out as the stream.

    One stream per seed, so the zero initial block (AES) or zero counter and nonce (ChaCha20) is sound.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415 - as above

    if prg is Prg.AES:
        return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    return Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()


def stream_bytes(prg: Prg, seed: bytes, length: int) -> bytes:
    """The first `length` bytes of the stream of `seed`, for short uses (Shamir coefficients)."""
    return stream(prg, seed).update(bytes(length))


# -- signatures --------------------------------------------------------------------------------


def ecdsa_sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256, DER, deterministic (RFC 6979): the same message gives the same bytes."""
    return private.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def ecdsa_verify(public: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the ECDSA/SHA-256 signature (DER) of `message` under `public`."""
    try:
        public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def p256_private(scalar: int) -> ec.EllipticCurvePrivateKey:
    """The P-256 private key with this number, for test vectors; real keys come from `identity`."""
    return ec.derive_private_key(scalar, ec.SECP256R1())


def p256_from_pem(pem: bytes) -> P256Private:
    """The private key in a P-256 PKCS#8 PEM. `LocalError(STATE_CORRUPT)` for anything else."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 10 ms, and a ticket is verified without

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise LocalError(Code.STATE_CORRUPT, "Expected a P-256 key in PEM.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise LocalError(Code.STATE_CORRUPT, "Expected a P-256 key; found one of another kind.")
    return key


def p256_public(der: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 public key from its SubjectPublicKeyInfo (DER). `PeerError(BAD_POINT)` for anything else."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 10 ms, and a ticket is verified without

    try:
        key = serialization.load_der_public_key(der)
    except ValueError as error:
        raise PeerError(Code.BAD_POINT, "Expected a P-256 public key in DER.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PeerError(Code.BAD_POINT, "Expected a P-256 public key; found one of another kind.")
    return key


def p256_public_der(public: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo (DER, 91 bytes) of a P-256 public key."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 10 ms, and a ticket is verified without

    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def ed25519_public(private_raw: bytes) -> bytes:
    """The 32-byte public key of a 32-byte Ed25519 private key (RFC 8032)."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(private_raw).public_key().public_bytes_raw()


def ed25519_sign(private_raw: bytes, message: bytes) -> bytes:
    """Ed25519 signature of `message`, 64 bytes."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(private_raw).sign(message)


def ed25519_verify(public_raw: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the Ed25519 signature of `message`; False also for a key of wrong length."""
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def ed25519_pem(private_raw: bytes) -> bytes:
    """A 32-byte Ed25519 private key as unencrypted PKCS#8 PEM; the caller stores it with mode 0600."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 10 ms, and a ticket is verified without

    return ed25519.Ed25519PrivateKey.from_private_bytes(private_raw).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def ed25519_from_pem(pem: bytes) -> bytes:
    """The 32 raw bytes of the private key in an Ed25519 PKCS#8 PEM. `LocalError(STATE_CORRUPT)` for others."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 10 ms, and a ticket is verified without

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LocalError(
            Code.STATE_CORRUPT, "Expected an unencrypted Ed25519 private key in PKCS#8 PEM."
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise LocalError(Code.STATE_CORRUPT, "Expected an Ed25519 private key; found one of another kind.")
    return key.private_bytes_raw()
