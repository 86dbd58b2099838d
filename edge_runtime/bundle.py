"""Verify a bundle that was downloaded, and unpack it: called by the participant.

Nothing in a bundle is believed before its digest and its publisher's signature fit. It is unpacked into
`<directory>/<digest>/` under another name first and moved there when all is on the disk, so a directory with
that name is complete, and a second unpacking finds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedless.protocol import bundle_format
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.manifest import GRAPH_FILE, MANIFEST_FILE, RUNTIME, Manifest, parse_bytes

_BUILDING = ".unpacking-"


@dataclass(frozen=True)
class Unpacked:
    """A verified bundle on this disk: `directory` holds its files."""

    digest: str
    directory: Path
    manifest: Manifest


def verify(
    bundle: bytes, digest: str, publishers: Mapping[bytes, bytes], newest_seen: int = 0
) -> tuple[Manifest, dict[str, bytes]]:
    """The client: check everything; the manifest and the files.

    `digest` is 64 hex digits, `publishers` maps 16-byte key ids to raw 32-byte Ed25519 public keys,
    `newest_seen` is the highest version of this function that this client ever ran (0: none). Raises
    `PeerError`: BUNDLE_DIGEST, BUNDLE_PUBLISHER, BUNDLE_FORGED, BUNDLE_MALFORMED, BUNDLE_PATH,
    BUNDLE_TOO_LARGE, MANIFEST_INVALID, BUNDLE_RUNTIME, BUNDLE_OLDER.
    """
    found = bundle_format.digest(bundle)
    if found != digest.lower():
        raise PeerError(Code.BUNDLE_DIGEST, f"Announced was {digest.lower()}, found was {found}.")
    header = bundle_format.read_header(bundle)
    bundle_format.verify(header, publishers)
    files = bundle_format.unpack(header.archive)
    manifest = parse_bytes(files[MANIFEST_FILE])
    if not manifest.runtime_min <= RUNTIME <= manifest.runtime_max:
        raise PeerError(
            Code.BUNDLE_RUNTIME,
            f"It needs runtime {manifest.runtime_min} to {manifest.runtime_max}; this is {RUNTIME}.",
            fix="Update fedless on this device." if manifest.runtime_min > RUNTIME else "Build it again.",
        )
    if manifest.version < newest_seen:
        raise PeerError(
            Code.BUNDLE_OLDER,
            f"{manifest.name} version {manifest.version}; version {newest_seen} was already seen here.",
        )
    if manifest.model is not None and GRAPH_FILE not in files:
        raise PeerError(Code.BUNDLE_MALFORMED, f"The manifest has a model, but there is no {GRAPH_FILE}.")
    return manifest, files


def unpack(
    bundle: bytes, digest: str, publishers: Mapping[bytes, bytes], directory: Path, newest_seen: int = 0
) -> Unpacked:
    """The client: verify and store as `directory/<digest>/`.

    Raises as `verify`, and `LocalError(DISK_FULL)`; after any error nothing of the bundle is left.
    """
    manifest, files = verify(bundle, digest, publishers, newest_seen)
    target = directory / digest.lower()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            if not target.is_dir():
                _store(files, directory, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LocalError(Code.DISK_FULL, f"{directory} cannot hold the bundle.") from None
        raise
    return Unpacked(digest.lower(), target, manifest)


def find(directory: Path, digest: str) -> Unpacked | None:
    """A bundle that was verified and unpacked earlier, or None."""
    target = directory / digest.lower()
    if not target.is_dir():
        return None
    return Unpacked(digest.lower(), target, parse_bytes((target / MANIFEST_FILE).read_bytes()))


def _store(files: Mapping[str, bytes], directory: Path, target: Path) -> None:
    """All files synced, then one rename, then the directory synced: a power cut leaves all or nothing."""
    for left in directory.glob(f"{_BUILDING}*"):  # by a power cut
        shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=directory))
    try:
        folders = {building}
        for name, data in files.items():
            path = building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            folders |= {parent for parent in path.parents if parent.is_relative_to(building)}
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for folder in folders:
            _sync(folder)
        building.chmod(0o755)
        building.rename(target)
        _sync(directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory against other processes and threads that unpack there."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
