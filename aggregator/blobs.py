"""Bundles, models and test sets in a directory, each file named by the SHA-256 of its bytes.

A blob appears whole or not at all: temporary file, fsync, rename. Called by both services, by the commit of
a round and by evaluation. Files are read and written in worker threads. `objects.ObjectBlobs` is the same over an
object store. Who puts or touches a blob has a day to name it in the database; later it may be erased (`sweep.py`).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock

from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import CHUNK_BYTES, DIGEST_BYTES

WANTED_S = 2 * 86_400.0
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Blobs:
    """A directory of immutable files by digest: `<path>/<aa>/<digest in hex>`."""

    def __init__(self, path: Path, *, sole: bool = True) -> None:
        """`sole`: nobody else works in the directory; without it, for a look, and nothing is tidied up."""
        self._path = path
        self._incoming = path / "incoming"
        self._lock = Lock()  # between a blob that is put again, and its erasing
        self._fetching = Lock()
        self._wanted: dict[bytes, float] = {}
        if not sole:
            return
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left_over in self._incoming.iterdir():  # of a process that was killed
            left_over.unlink()

    async def put(self, chunks: AsyncIterator[bytes]) -> tuple[bytes, int]:
        """Stores what comes; returns digest and size in bytes. Raises `LocalError` DISK_FULL."""
        blob = _Incoming(self._incoming)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(blob.write, chunk)
            return await asyncio.to_thread(self._finish, blob)
        finally:
            blob.discard()

    async def put_bytes(self, data: bytes) -> tuple[bytes, int]:
        """As `put`, for bytes that are in memory anyway."""
        return await asyncio.to_thread(self.put_blocks, (data,))

    def put_blocks(self, blocks: Iterable[bytes | memoryview]) -> tuple[bytes, int]:
        """As `put`, blocking: for worker threads."""
        blob = _Incoming(self._incoming)
        try:
            for block in blocks:
                blob.write(block)
            return self._finish(blob)
        finally:
            blob.discard()

    def put_together(self, rows: Iterable[Sequence[bytes | memoryview]], count: int) -> list[bytes]:
        """Stores `count` blobs of which each row holds a block of each, and returns their digests; blocks."""
        made = [_Incoming(self._incoming) for _ in range(count)]
        try:
            for row in rows:
                for blob, block in zip(made, row, strict=True):
                    blob.write(block)
            return [self._finish(blob)[0] for blob in made]
        finally:
            for blob in made:
                blob.discard()

    def has(self, digest: bytes) -> bool:
        """Whether the blob is here."""
        return len(digest) == DIGEST_BYTES and self._file(digest).is_file()

    def size(self, digest: bytes) -> int:
        """The blob's size in bytes; raises `PeerError` UNKNOWN_BLOB."""
        return self.path(digest).stat().st_size

    def path(self, digest: bytes) -> Path:
        """The blob's file, to be read only; raises `PeerError` UNKNOWN_BLOB."""
        if not self.has(digest):
            raise PeerError(Code.UNKNOWN_BLOB, f"Its digest is {digest.hex()[:16] or 'empty'}...")
        return self._file(digest)

    def touch(self, digest: bytes) -> bool:
        """Whether the blob is here; it then counts as put now. Blocks, as `path`, where blobs are elsewhere."""
        self._want(digest)
        with self._lock:
            if not Blobs.has(self, digest):
                return False
            os.utime(self._file(digest))
            return True

    def erase(self, digest: bytes, older_s: float) -> bool:
        """Removes a blob unless it was put or touched in the last `older_s` seconds; whether it did."""
        if len(digest) != DIGEST_BYTES:
            return False
        file = self._file(digest)
        with self._lock:
            try:
                if time.time() - file.stat().st_mtime < older_s or self._is_wanted(digest, older_s):
                    return False
                file.unlink()
            except FileNotFoundError:
                return False
        sync_folder(file.parent)
        return True

    def stored(self) -> Iterator[tuple[bytes, float]]:
        """Digests of all blobs, and the seconds since each was put or touched."""
        for file in self._path.glob("??/*"):
            digest = digest_of(file.name)
            if digest is not None:
                with suppress(FileNotFoundError):
                    yield digest, time.time() - file.stat().st_mtime

    def put_back(self, digest: bytes) -> bool:
        """Stores a needed blob of which only a copy is left; False: there is none."""
        return self.has(digest)

    def trim(self) -> int:
        """Removes what is here only for speed; the bytes that went."""
        with self._lock:
            last = time.monotonic() - WANTED_S
            self._wanted = {digest: at for digest, at in self._wanted.items() if at > last}
        return 0

    def _want(self, digest: bytes) -> None:
        """Before anything that counts on a blob: it is not erased then, whatever the clock says."""
        with self._lock:
            self._wanted[digest] = time.monotonic()

    def _is_wanted(self, digest: bytes, older_s: float) -> bool:
        return time.monotonic() - self._wanted.get(digest, -math.inf) < older_s

    async def read(
        self, digest: bytes, offset: int = 0, chunk_bytes: int = CHUNK_BYTES
    ) -> AsyncIterator[bytes]:
        """The blob's bytes from an offset on; raises `PeerError` UNKNOWN_BLOB or WRONG_OFFSET."""
        size = await asyncio.to_thread(self.size, digest)
        if not 0 <= offset <= size:
            raise PeerError(Code.WRONG_OFFSET, f"Expected an offset of 0 to {size}, found {offset}.")
        with self.path(digest).open("rb", buffering=0) as file:
            file.seek(offset)
            while chunk := await asyncio.to_thread(file.read, chunk_bytes):
                yield chunk

    def _file(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._path / name[:2] / name

    def _finish(self, blob: _Incoming) -> tuple[bytes, int]:
        digest = blob.digest()
        blob.sync()
        self._keep(digest, blob.path)
        return digest, blob.size

    def _keep(self, digest: bytes, draft: Path) -> None:
        """Makes a complete, synced file the blob of this digest."""
        self._want(digest)
        file = self._file(digest)
        with self._lock, disk_full(file):
            try:
                os.utime(file)  # as if it were new: nobody erases it now
            except FileNotFoundError:
                file.parent.mkdir(exist_ok=True)
                sync_folder(self._path)
                draft.replace(file)
                sync_folder(file.parent)


class _Incoming:
    """A blob that is being written."""

    def __init__(self, folder: Path) -> None:
        with disk_full(folder):
            self._file = NamedTemporaryFile(dir=folder, buffering=0, delete=False)  # noqa: SIM115  (closed in discard)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        with disk_full(Path(self._file.name)):
            write_all(self._file.fileno(), data)
        self._hash.update(data)
        self.size += memoryview(data).nbytes

    def digest(self) -> bytes:
        return self._hash.digest()

    @property
    def path(self) -> Path:
        return Path(self._file.name)

    def sync(self) -> None:
        with disk_full(self.path):
            os.fsync(self._file.fileno())

    def discard(self) -> None:
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


@contextmanager
def disk_full(where: Path) -> Iterator[None]:
    """Turns "no space left", a quota and a file size limit into `LocalError` DISK_FULL."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        detail = f"{where.name} cannot be written: {error.strerror}."
        raise LocalError(
            Code.DISK_FULL, detail, fix="Free space on the disk of the state directory."
        ) from error


def digest_of(name: str) -> bytes | None:
    """The digest that a file or object is named by; None for anything else."""
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES and digest.hex() == name else None


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes every byte; an unbuffered write may take only some of them."""
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
