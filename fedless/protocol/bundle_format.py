"""*Pure.* The container of a bundle: signed header and deterministic archive, as bytes.

`fedless.authoring.sign` packs, `edge_runtime.bundle` and the aggregator read. One file:

=========  ====================================================================================
bytes      what
=========  ====================================================================================
16         magic `fedless-bundle1` and a newline
16         key id: the first 16 bytes of SHA-256 of the publisher's raw Ed25519 public key
64         Ed25519 signature over `b"fedless-bundle" + 0x00 + SHA-256(archive)`
8          length of the archive, u64 big-endian
length     the archive: a ZIP with `function.toml`, `model.tflite` and the author's Python files
=========  ====================================================================================

A bundle's digest is the SHA-256 of the whole file. The archive is the same for the same files: names sorted,
one fixed time, one fixed mode. What is read is bounded before it is inflated.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.manifest import MANIFEST_FILE

MAGIC = b"fedless-bundle1\n"
LABEL = b"fedless-bundle\0"
_HEADER = struct.Struct(">16s16s64sQ")
HEADER_BYTES = _HEADER.size
MAX_FILES = 256
MAX_FILE_BYTES = 256 << 20
MAX_BUNDLE_BYTES = 256 << 20
MAX_UNPACKED_BYTES = 512 << 20
_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_FILE_KIND, _REGULAR = 0o170000, 0o100000
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/){0,7}[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Header:
    """The outer part of a bundle, before any trust: `key_id` 16 bytes, `signature` 64 bytes."""

    key_id: bytes
    signature: bytes
    archive: bytes = field(repr=False)

    def signed_bytes(self) -> bytes:
        """What the publisher signed."""
        return LABEL + hashlib.sha256(self.archive).digest()


def digest(bundle: bytes) -> str:
    """SHA-256 of the whole bundle, 64 hex digits: its name everywhere."""
    return hashlib.sha256(bundle).hexdigest()


def pack(files: Mapping[str, bytes], private_key: bytes) -> bytes:
    """The author's side: the bundle of `files`, signed with the raw 32-byte Ed25519 `private_key`.

    Raises `PeerError(BUNDLE_PATH | BUNDLE_TOO_LARGE | BUNDLE_MALFORMED)` where `unpack` would.
    """
    archive = _archive(files)
    public = crypto.ed25519_public(private_key)
    signature = crypto.ed25519_sign(private_key, LABEL + hashlib.sha256(archive).digest())
    bundle = _HEADER.pack(MAGIC, crypto.key_id(public), signature, len(archive)) + archive
    unpack(read_header(bundle).archive)
    return bundle


def read_header(bundle: bytes) -> Header:
    """The outer part. Raises `PeerError(BUNDLE_MALFORMED | BUNDLE_TOO_LARGE)`."""
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise PeerError(Code.BUNDLE_TOO_LARGE, f"{len(bundle)} bytes; at most {MAX_BUNDLE_BYTES}.")
    if len(bundle) < HEADER_BYTES or not bundle.startswith(MAGIC):
        raise PeerError(Code.BUNDLE_MALFORMED, "It does not begin with the header of a bundle.")
    _, key_id, signature, length = _HEADER.unpack_from(bundle)
    if length != len(bundle) - HEADER_BYTES:
        raise PeerError(
            Code.BUNDLE_MALFORMED,
            f"The header announces an archive of {length} bytes, but {len(bundle) - HEADER_BYTES} follow.",
        )
    return Header(key_id, signature, bundle[HEADER_BYTES:])


def verify(header: Header, publishers: Mapping[bytes, bytes]) -> None:
    """Whether one of `publishers` (key id -> raw 32-byte Ed25519 public key) signed it.

    Raises `PeerError(BUNDLE_PUBLISHER)` for a key id that is not among them, `PeerError(BUNDLE_FORGED)` for a
    signature that does not fit.
    """
    public = publishers.get(header.key_id)
    if public is None:
        raise PeerError(
            Code.BUNDLE_PUBLISHER,
            f"Its key id is {header.key_id.hex()}; {len(publishers)} publisher key(s) are trusted.",
            fix="Sign it with this fleet's publisher key.",
        )
    if not crypto.ed25519_verify(public, header.signature, header.signed_bytes()):
        raise PeerError(Code.BUNDLE_FORGED, f"The key id is {header.key_id.hex()}.")


def unpack(archive: bytes) -> dict[str, bytes]:
    """The files of a verified archive by name (relative, `/` between folders).

    Raises `PeerError`: BUNDLE_MALFORMED (not a ZIP, damaged, encrypted, a name twice, no manifest),
    BUNDLE_PATH (an absolute or escaping name, a folder, a link), BUNDLE_TOO_LARGE.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            entries = zipped.infolist()
            for entry in entries:
                _check_entry(entry)
            _check_sizes({entry.filename: entry.file_size for entry in entries}, len(entries))
            return {entry.filename: _read(zipped, entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise PeerError(Code.BUNDLE_MALFORMED, f"The archive cannot be read: {error}.") from None


def _read(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """At most the announced size is inflated, whatever the compressed stream holds."""
    with zipped.open(entry) as stream:
        return stream.read(entry.file_size)


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3
            entry.external_attr = _MODE
            entry.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(entry, files[name], compresslevel=9)
    return buffer.getvalue()


def _check_entry(entry: zipfile.ZipInfo) -> None:
    # ZipFile cuts a name at a NUL byte: only a name that survived unchanged is taken.
    if entry.filename != entry.orig_filename or not _NAME.fullmatch(entry.filename):
        raise PeerError(Code.BUNDLE_PATH, f"The name {entry.orig_filename!r} is not allowed.")
    kind = (entry.external_attr >> 16) & _FILE_KIND
    if kind not in (0, _REGULAR):
        raise PeerError(Code.BUNDLE_PATH, f"{entry.filename} is not a regular file.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PeerError(Code.BUNDLE_MALFORMED, f"{entry.filename} has a compression that is not allowed.")


def _check_sizes(sizes: Mapping[str, int], entries: int) -> None:
    if len(sizes) != entries:
        raise PeerError(Code.BUNDLE_MALFORMED, "A name occurs twice.")
    folders = {"/".join(name.split("/")[:end]) for name in sizes for end in range(1, name.count("/") + 1)}
    if folders & sizes.keys():
        raise PeerError(Code.BUNDLE_MALFORMED, "A name is both a file and a folder.")
    if MANIFEST_FILE not in sizes:
        raise PeerError(Code.BUNDLE_MALFORMED, f"There is no {MANIFEST_FILE}.")
    if entries > MAX_FILES:
        raise PeerError(Code.BUNDLE_TOO_LARGE, f"{entries} files; at most {MAX_FILES}.")
    for name, size in sizes.items():
        if size > MAX_FILE_BYTES:
            raise PeerError(Code.BUNDLE_TOO_LARGE, f"{name} has {size} bytes; at most {MAX_FILE_BYTES}.")
    if sum(sizes.values()) > MAX_UNPACKED_BYTES:
        raise PeerError(
            Code.BUNDLE_TOO_LARGE, f"{sum(sizes.values())} bytes unpacked; at most {MAX_UNPACKED_BYTES}."
        )
