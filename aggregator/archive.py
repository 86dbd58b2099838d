"""The file of a back-up: a tar archive whose first member, `backup.json`, names every other one with its SHA-256.

What is in it is the same whatever the fleet's database and blob store were: a SQLite file and files of blobs. Written
by `backup.py`; read, and believed in nothing that its digests do not say, by `restore.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.blobs import NO_SPACE
from aggregator.store.schema import SCHEMA_VERSION
from fedless.protocol.errors import Code, LocalError

FORMAT = 1
INDEX, CONFIGURATION = "backup.json", "aggregator.toml"
DATABASE, PRICES, BLOBS = "state/fedless.db", "state/prices.toml", "state/blobs/"
INDEX_BYTES_MAX = 256 * 2**20
BLOCK_BYTES = 2**20
KEYS = (
    "authority/authority.key", "aggregator/cert.key", "aggregator/ticket.key", "broker/cert.key",
    "operator/cert.key", "publisher/publisher.key",
)  # fmt: skip
"""The private keys of a fleet: in a back-up `with_keys` only."""
FOLLOWING = "authority/next.key"
"""The same of an authority that is about to take the other's place."""
# No part begins with a dot, so that no name leaves the directory.
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*")
Tell = Callable[[str, int, int], None]
"""Hears what goes on ("files", "blobs", "rows", "database"), how many are done, and of how many; 0: nobody knows."""


def in_silence(_what: str, _done: int, _of: int) -> None:
    """Tells nobody."""


class Contents(BaseModel):
    """What a back-up says of itself; `files`: SHA-256 in hex by name; `taken_at_ms`: Unix ms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    fedless: str
    schema_version: int
    fleet: str
    taken_at_ms: int
    files: dict[str, str]

    @property
    def keys_left_out(self) -> tuple[str, ...]:
        """Private keys that must come from elsewhere before the fleet can be served."""
        following = (FOLLOWING,) if FOLLOWING.replace(".key", ".pem") in self.files else ()
        return tuple(name for name in (*KEYS, *following) if name not in self.files)


def blob_name(digest: bytes) -> str:
    """The name of a blob in an archive, and in a fleet's directory."""
    name = digest.hex()
    return f"{BLOBS}{name[:2]}/{name}"


# -- writing


def digest_of_content(content: bytes | Path) -> str:
    """SHA-256 in hex of bytes or of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(target: IO[bytes], contents: Contents, members: Iterable[tuple[str, bytes | Path]]) -> None:
    """The archive; what comes must have the digests that the contents say. Raises `LocalError` STATE_CORRUPT."""
    index = contents.model_dump_json(indent=1).encode()
    with tarfile.open(fileobj=target, mode="w") as tar:
        _add(tar, INDEX, index, contents.taken_at_ms)
        for name, content in members:
            found = _add(tar, name, content, contents.taken_at_ms)
            if found != contents.files[name]:
                detail = f"{name} has changed on the disk: its digest is {found[:16]}..."
                raise LocalError(
                    Code.STATE_CORRUPT, detail, fix="Check the disk; keep the back-ups of before."
                )


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path, at_ms: int) -> str:
    """The SHA-256 of what was written."""
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = 0o600, at_ms // 1000
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        info.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        passing = _Passing(file)
        tar.addfile(info, passing)
    return passing.hash.hexdigest()


class _Passing:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        return data


# -- reading


def unpack(archive: Path, draft: Path, now_ms: int, tell: Tell = in_silence) -> Contents:
    """Takes everything out of an archive into a new directory; what it says of itself.

    Raises `LocalError` STATE_CORRUPT, WRONG_STATE (of a newer program), CLOCK_WRONG (a clock before the back-up).
    """
    with tarfile.open(archive, "r:") as tar:
        contents = _contents(tar, now_ms)
        missing = set(contents.files)
        while (member := tar.next()) is not None:
            if member.name not in missing or not member.isreg():
                detail = f"{archive.name} has a member that its index lacks: {member.name}."
                raise LocalError(Code.STATE_CORRUPT, detail)
            missing.remove(member.name)
            _take_out(tar, member, draft / member.name, contents.files[member.name])
            tell("files", len(contents.files) - len(missing), len(contents.files))
    if missing:
        raise LocalError(Code.STATE_CORRUPT, f"{archive.name} ends too early: {min(missing)} is not in it.")
    return contents


def _contents(tar: tarfile.TarFile, now_ms: int) -> Contents:
    """The index, checked. Raises `LocalError`."""
    first = tar.next()
    file = tar.extractfile(first) if first and first.name == INDEX and first.size <= INDEX_BYTES_MAX else None
    if file is None:
        raise LocalError(Code.STATE_CORRUPT, f"This is no back-up: expected {INDEX} as its first member.")
    try:
        values = json.loads(file.read())
        if isinstance(values, dict) and values.get("format") != FORMAT:
            detail = f"Expected a back-up of format {FORMAT}, found {values.get('format')!r}."
            raise LocalError(Code.WRONG_STATE, detail, fix="Use the version of fedless that made it.")
        contents = Contents.model_validate(values)
    except (ValueError, ValidationError) as error:
        raise LocalError(Code.STATE_CORRUPT, f"The back-up's {INDEX} cannot be read.") from error
    if contents.schema_version > SCHEMA_VERSION:
        detail = f"Expected a database of schema version {SCHEMA_VERSION} or before, found {contents.schema_version}."
        raise LocalError(
            Code.WRONG_STATE, detail, fix=f"Use fedless {contents.fedless}, which made the back-up."
        )
    if now_ms < contents.taken_at_ms:
        detail = "The back-up was taken later than now: ids of rounds that were given since would come again."
        raise LocalError(Code.CLOCK_WRONG, detail, fix="Set the clock, then restore.")
    wrong = [name for name, digest in contents.files.items() if not _is_right(name, digest)]
    if wrong or not {CONFIGURATION, DATABASE} <= contents.files.keys():
        raise LocalError(
            Code.STATE_CORRUPT, f"The back-up's {INDEX} names {(wrong or ['no database'])[0]!r}."
        )
    return contents


def _is_right(name: str, digest: str) -> bool:
    """Whether it stays in the directory; a blob is what its name says."""
    return bool(_NAME.fullmatch(name)) and (not name.startswith(BLOBS) or name.rpartition("/")[2] == digest)


def _take_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, digest: str) -> None:
    source = tar.extractfile(member)
    assert source is not None  # noqa: S101 - a regular file
    target.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := source.read(BLOCK_BYTES):
            found.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != digest:
        raise LocalError(
            Code.STATE_CORRUPT, f"{member.name} is damaged: its digest is not the one in {INDEX}."
        )


@contextmanager
def own_errors(archive: Path) -> Iterator[None]:
    """Turns what the disk and tar say into `LocalError`s."""
    try:
        yield
    except FileNotFoundError as error:
        raise LocalError(Code.STATE_MISSING, f"{error.strerror}: {error.filename}.") from error
    except (tarfile.TarError, EOFError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LocalError(
            Code.STATE_CORRUPT, f"{archive.name} cannot be read as a back-up: {error}."
        ) from error
    except OSError as error:
        code = Code.DISK_FULL if error.errno in NO_SPACE else Code.CONFIG_INVALID
        raise LocalError(code, f"{error}.") from error
