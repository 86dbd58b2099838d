"""Blobs by digest on this disk, `DIR/cache/<sha256 hex>`: models and bundles, bounded, least recently used out first.

An unfinished download is `<digest>.part`, and goes on from its end. A file without that suffix was whole and verified
when it was renamed; it is verified again on every use, since an SD card forgets, and so does a power cut before
`settle`. Called by the participant.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Self

from edge_runtime.disk import sync_folder
from fedless.protocol.errors import Code, LocalError, PeerError

_BLOCK = 1 << 20
_PART = ".part"


class Cache:
    """`DIR/cache/`, with at most `limit_bytes` in it."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._unsettled: list[Path] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, digest: bytes) -> Path | None:
        """The whole, verified blob, marked as just used; None if it is not here (a damaged one is removed)."""
        path = self.folder / digest.hex()
        if not path.is_file():
            return None
        if _sha256(path) != digest:
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return path

    def part(self, digest: bytes) -> Download:
        """A download of a blob, begun or to be begun."""
        return Download(self, digest)

    def settle(self) -> None:
        """Sync what came since the last time. A power cut before costs its download: it is verified on every use."""
        files, self._unsettled = self._unsettled, []
        try:
            for path in files:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    os.fsync(file.fileno())
            if files:
                sync_folder(self.folder)
        except OSError as error:
            raise _explained(error, self.folder) from error

    def came(self, path: Path) -> None:
        """A download is whole."""
        self._unsettled.append(path)

    def size(self) -> int:
        """Bytes in it, unfinished downloads included."""
        return sum(size for _, size, _ in self._entries())

    def make_room(self, needed: int, keep: frozenset[bytes]) -> None:
        """Remove the least recently used until `needed` more bytes fit; never those in `keep`.

        Raises `LocalError(DISK_FULL)` if they cannot fit at all.
        """
        names = {digest.hex() for digest in keep}
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total + needed <= self.limit_bytes:
                break
            if path.name.removesuffix(_PART) not in names:
                total -= size
                path.unlink(missing_ok=True)
        if total + needed > self.limit_bytes:
            raise LocalError(
                Code.DISK_FULL,
                f"The cache may hold {self.limit_bytes} bytes; {total + needed} are needed.",
                fix="Raise cache_mb of [limits] in edge.toml.",
            )

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of each file, the least recently used first."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(
                FileNotFoundError
            ):  # a download beside this one is renamed when it is whole
                if entry.is_file():
                    found.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
        return sorted(found)


class Download:
    """One blob on its way in: `write` what comes, then `finish`. Use as a context manager."""

    def __init__(self, cache: Cache, digest: bytes) -> None:
        self._cache = cache
        self._digest = digest
        self._path = cache.folder / (digest.hex() + _PART)
        self._hash = hashlib.sha256()
        self._file = self._path.open("a+b")
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
        self.offset = self._file.tell()
        self._resumed = self.offset > 0

    def write(self, data: bytes) -> None:
        """The next bytes. Raises `LocalError(DISK_FULL)`; what was written stays for a later attempt."""
        try:
            self._file.write(data)
        except OSError as error:
            raise _explained(error, self._cache.folder) from error
        self._hash.update(data)
        self.offset += len(data)

    def finish(self) -> Path:
        """Verify, rename. Raises `PeerError(WRONG_DIGEST)`, and removes what came, if it is not the blob.

        When part of it came earlier, the disk may be at fault, and the error says that trying again makes sense.
        """
        if self._hash.digest() != self._digest:
            self.discard()
            raise PeerError(
                Code.WRONG_DIGEST,
                f"Expected a blob with SHA-256 {self._digest.hex()[:16]}..., found {self._hash.hexdigest()[:16]}....",
                retry_after_ms=1 if self._resumed else None,
            )
        try:
            self._file.flush()
        except OSError as error:
            raise _explained(error, self._cache.folder) from error
        target = self._cache.folder / self._digest.hex()
        self._path.rename(target)
        self._cache.came(target)
        return target

    def discard(self) -> None:
        """Start over next time."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what came stays."""
        try:
            self._file.close()
        except OSError as error:
            raise _explained(error, self._cache.folder) from error


def remove_unused_functions(folder: Path, keep: frozenset[bytes], most: int) -> None:
    """Unpacked bundles: keep those named and the `most` newest."""
    if not folder.is_dir():
        return
    names = {digest.hex() for digest in keep}
    found = sorted(
        (e for e in os.scandir(folder) if e.is_dir()), key=lambda e: e.stat().st_mtime, reverse=True
    )
    for entry in found[most:]:
        if entry.name not in names:
            shutil.rmtree(entry.path, ignore_errors=True)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _explained(error: OSError, folder: Path) -> LocalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LocalError(Code.DISK_FULL, f"{folder} is full.", fix="Free some space on this disk.")
    return LocalError(Code.STATE_CORRUPT, f"{folder} cannot be written: {error.strerror}.")
