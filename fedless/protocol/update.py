"""*Pure.* The container of an update of the agent itself: a signed list of wheels, and the wheels behind it.

`fedless image update` packs, `edge_runtime.update` reads, one file after the other: a small board cannot hold them all.

=========  ====================================================================================
bytes      what
=========  ====================================================================================
16         magic `fedless-update1` and a newline
16         key id: the first 16 bytes of SHA-256 of the publisher's raw Ed25519 public key
64         Ed25519 signature over `b"fedless-update" + 0x00 + SHA-256(list)`
4          length of the list, u32 big-endian
length     the list, JSON: see `Update`
...        the files, in the list's order, nothing between or after them
=========  ====================================================================================

The label keeps a function's signature from counting for an agent. Files are believed by the digests in the list.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError

MAGIC = b"fedless-update1\n"
LABEL = b"fedless-update\0"
HEAD = struct.Struct(">16s16s64sI")
LIST_BYTES_MAX = 64 << 10
FILE_BYTES_MAX = 256 << 20
FILES_MAX = 64
ANY = "any"
_SEQUENCE_MAX = 2**53
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}\.whl")
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,64}")
_PYTHON = re.compile(r"|3\.[0-9]{1,3}")
_MACHINE = re.compile(r"any|aarch64|x86_64|armv7l")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


@dataclass(frozen=True)
class File:
    """One wheel: its name, its length in bytes, its SHA-256 (64 hex digits)."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Update:
    """What an update is. `sequence` grows with every one: a device takes none that is not newer than all it saw.

    `python` is such as `3.13`, or "" for any; `machine` as `platform.machine()`, or `any`. `needs`: packages that the
    device must have in just these versions, since they are not among `files`.
    """

    version: str
    sequence: int
    python: str
    machine: str
    needs: Mapping[str, str]
    files: tuple[File, ...]


@dataclass(frozen=True)
class Head:
    """The fixed part, before any trust."""

    key_id: bytes
    signature: bytes
    list_bytes: int


def pack_head(update: Update, private_key: bytes) -> bytes:
    """The publisher: all that is before the files. Raises `PeerError(BUNDLE_MALFORMED)` where `read_list` would."""
    text = json.dumps(
        {
            "version": update.version, "sequence": update.sequence, "python": update.python,
            "machine": update.machine, "needs": dict(sorted(update.needs.items())),
            "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.digest} for file in update.files],
        },
        sort_keys=True, separators=(",", ":"),
    ).encode()  # fmt: skip
    public = crypto.ed25519_public(private_key)
    signature = crypto.ed25519_sign(private_key, LABEL + hashlib.sha256(text).digest())
    read_list(text, Head(crypto.key_id(public), signature, len(text)), {crypto.key_id(public): public})
    return HEAD.pack(MAGIC, crypto.key_id(public), signature, len(text)) + text


def read_head(data: bytes) -> Head:
    """The first `HEAD.size` bytes. Raises `PeerError(BUNDLE_MALFORMED)`."""
    if len(data) != HEAD.size or not data.startswith(MAGIC):
        raise PeerError(Code.BUNDLE_MALFORMED, "It does not begin with the head of an update.")
    _, key_id, signature, length = HEAD.unpack(data)
    if not 0 < length <= LIST_BYTES_MAX:
        raise PeerError(Code.BUNDLE_TOO_LARGE, f"A list of {length} bytes; at most {LIST_BYTES_MAX}.")
    return Head(key_id, signature, length)


def read_list(text: bytes, head: Head, publishers: Mapping[bytes, bytes]) -> Update:
    """The verified list; `publishers` maps key ids to raw Ed25519 public keys.

    Raises `PeerError`: BUNDLE_PUBLISHER, BUNDLE_FORGED, BUNDLE_MALFORMED, BUNDLE_PATH.
    """
    public = publishers.get(head.key_id)
    if public is None:
        raise PeerError(
            Code.BUNDLE_PUBLISHER, f"Its key id is {head.key_id.hex()}; {len(publishers)} key(s) are trusted."
        )
    if not crypto.ed25519_verify(public, head.signature, LABEL + hashlib.sha256(text).digest()):
        raise PeerError(Code.BUNDLE_FORGED, f"The key id is {head.key_id.hex()}.")
    try:
        values = json.loads(text)
        files = tuple(File(each["name"], each["bytes"], each["sha256"]) for each in values["files"])
        found = Update(
            values["version"], values["sequence"], values["python"], values["machine"], values["needs"], files
        )
        _check(found)
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(Code.BUNDLE_MALFORMED, f"The list of the update: {error}.") from None
    return found


def _check(update: Update) -> None:
    """What was read is of the kinds that the class promises. Raises ValueError, `PeerError(BUNDLE_PATH)`."""
    texts: list[tuple[object, re.Pattern[str]]] = [
        (update.version, _VERSION), (update.python, _PYTHON), (update.machine, _MACHINE),
        *((name, _PACKAGE) for name in update.needs), *((text, _VERSION) for text in update.needs.values()),
        *((file.digest, _DIGEST) for file in update.files), *((file.name, re.compile(".+")) for file in update.files),
    ]  # fmt: skip
    for value, pattern in texts:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            message = f"{value!r} is not of the form {pattern.pattern}"
            raise ValueError(message)
    numbers: list[tuple[object, int]] = [(update.sequence, _SEQUENCE_MAX)]
    numbers += [(file.bytes, FILE_BYTES_MAX) for file in update.files]
    for number, top in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= top:
            message = "a sequence or length is out of range"
            raise ValueError(message)
    names = [file.name for file in update.files]
    if not 0 < len(names) <= FILES_MAX or len(set(names)) != len(names):
        message = f"expected 1 to {FILES_MAX} files, none of them twice"
        raise ValueError(message)
    for name in names:
        if not _NAME.fullmatch(name):
            raise PeerError(Code.BUNDLE_PATH, f"The name {name!r} is not allowed.")
