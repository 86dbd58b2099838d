"""Reports on their way in: a spool file each, checked as a whole, then added to the round's running sum.

`Spool` takes the bytes of one report per (round, client), resumable, the declared length checked before
the first byte. `check` reads the whole file once: digest, finite, range. Only then is it added, so a report
that breaks off leaves no trace in the sum. Memory is O(model): one float64 vector per open round and one
buffer per addition, never a whole update. The files stay until the round is committed; after a restart the
sum is made again from those of the accepted reports. Called by the coordinator; disk work in worker threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aggregator.blobs import disk_full, sync_folder, write_all
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import ID, Encoding
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.privacy import bound_before_rounding

BLOCK = 1 << 18
"""Coordinates (float32) that are worked on at a time: 1 MiB."""
AT_ONCE = 16
"""Reports that are received at the same time; more wait, so that their chunks do not fill the memory."""
DISK_RETRY_MS = 30_000


class FloatSum:
    """The running sum of a plain round: float64[P] of updates times their weights, and the weights."""

    def __init__(self, parameters: int) -> None:
        self.total: npt.NDArray[np.float64] = np.zeros(parameters, np.float64)
        self.weight = 0.0

    def add(self, file: Path, weight: float, counts: float) -> None:
        """Adds a checked report (raw little-endian float32[P]) times its weight, as so much in the mean; blocks."""
        product = np.empty(min(BLOCK, len(self.total)), np.float64)
        start = 0
        for block in float_blocks(file):
            scaled = np.multiply(block, np.float64(weight), out=product[: len(block)])
            self.total[start : start + len(block)] += scaled
            start += len(block)
        self.weight += counts


class ClippedSum(FloatSum):
    """The running sum of a private plain round: updates clipped to an L2 norm of `clip`, in whole steps, counted once.

    `steps` to the unit, few enough for every sum to be exact in binary64; `clipped` says how many were longer.
    """

    def __init__(self, parameters: int, clip: float, steps: float) -> None:
        super().__init__(parameters)
        self.steps = steps
        self.clipped = 0
        self._clip = clip
        self._bound = bound_before_rounding(clip, parameters, steps)

    def add(self, file: Path, weight: float, counts: float) -> None:  # noqa: ARG002 - here all weigh the same
        """Adds a checked report, clipped; blocks."""
        norm = math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in float_blocks(file)))
        factor = self.steps * (min(1.0, self._bound / norm) if norm else 1.0)
        start = 0
        for block in float_blocks(file):
            self.total[start : start + len(block)] += np.rint(np.multiply(block, factor, dtype=np.float64))
            start += len(block)
        self.clipped += norm > self._clip
        self.weight += 1


class RingSum:
    """The running sum of a masked round: ring words modulo 2^w; noise to whoever looks at it."""

    def __init__(self, words: int, encoding: Encoding) -> None:
        self.total: Words = np.zeros(words, word_dtype(8 * encoding.word_bytes))

    def add(self, file: Path, _weight: float, _counts: float) -> None:
        """Adds a checked report (raw little-endian words); its weight is inside it. Blocks."""
        for part, words in _ring_blocks(self.total, file):
            np.add(part, words, out=part)


def take_out(total: Words, file: Path) -> None:
    """Takes a report that was added out of a sum of ring words again, in place; blocks."""
    for part, words in _ring_blocks(total, file):
        np.subtract(part, words, out=part)


def _ring_blocks(total: Words, file: Path) -> Iterator[tuple[Words, Words]]:
    """A report's words, block after block, each with its part of the sum; overwritten by the next."""
    start, size = 0, total.itemsize
    buffer = np.empty(BLOCK, total.dtype)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer.data):
            yield total[start : start + count // size], buffer[: count // size]
            start += count // size


def float_blocks(file: Path) -> Iterator[npt.NDArray[np.float32]]:
    """A file of little-endian float32, block after block; each block is overwritten by the next."""
    buffer = np.empty(BLOCK, "<f4")
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer.data):
            yield buffer[: count // buffer.itemsize]


class Spool:
    """The folder of spool files: `<path>/<round>/<client>.part`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True)
        self._places = asyncio.Semaphore(AT_ONCE)
        self._writers: dict[Path, object] = {}

    @property
    def directory(self) -> Path:
        """The folder itself; its disk is what reports fill."""
        return self._path

    def file(self, round_id: int, client_id: str) -> Path:
        """Where a report's bytes are."""
        if not ID.fullmatch(client_id):  # it came from a certificate, but it becomes a path
            raise PeerError(Code.RESERVED_NAME)
        return self._path / str(round_id) / f"{client_id}.part"

    def offset(self, round_id: int, client_id: str) -> int:
        """How many bytes of the report are here."""
        file = self.file(round_id, client_id)
        return file.stat().st_size if file.exists() else 0

    async def receive(
        self, round_id: int, client_id: str, offset: int, length: int, chunks: AsyncIterator[bytes]
    ) -> None:
        """Appends chunks until all `length` bytes are here; returns when they are durable.

        The newest transfer of a client wins: an older one that hangs in a broken connection ends at its
        next chunk. Raises `PeerError` WRONG_OFFSET, WRONG_LENGTH (too much: the file is erased; too
        little: it stays, to be resumed), BUSY (overtaken by a newer transfer) or DISK_FULL.
        """
        file, ours = self.file(round_id, client_id), object()
        self._writers[file] = ours
        try:
            async with self._places:
                await self._append(file, ours, offset, length, chunks)
        finally:
            if self._writers.get(file) is ours:
                del self._writers[file]

    async def check(self, round_id: int, client_id: str, sha256: bytes, limit: float | None) -> None:
        """Whether the whole report is what was announced, and an update with no number beyond `limit`.

        A masked report is looked at by its digest only (`limit` None): every word is as good as any other.

        Raises `PeerError` WRONG_DIGEST, NOT_FINITE or OUT_OF_RANGE.
        """
        await asyncio.to_thread(check_report, self.file(round_id, client_id), sha256, limit)

    async def erase(self, round_id: int, client_id: str) -> None:
        """Removes one report's bytes."""
        self._writers.pop(self.file(round_id, client_id), None)
        await asyncio.to_thread(self.file(round_id, client_id).unlink, missing_ok=True)

    async def erase_round(self, round_id: int) -> None:
        """Removes all of a round's bytes."""
        await asyncio.to_thread(shutil.rmtree, self._path / str(round_id), ignore_errors=True)

    async def keep_only(self, round_ids: AbstractSet[int]) -> None:
        """Removes what is left of rounds other than these: a crash may come between commit and erasure."""
        for folder in await asyncio.to_thread(lambda: list(self._path.iterdir())):
            if folder.name not in {str(round_id) for round_id in round_ids}:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _append(
        self, file: Path, ours: object, offset: int, length: int, chunks: AsyncIterator[bytes]
    ) -> None:
        descriptor = await asyncio.to_thread(_open, file, offset)
        try:
            size = offset
            async for chunk in chunks:
                if self._writers.get(file) is not ours:
                    detail = "A newer transfer of this report is under way."
                    raise PeerError(Code.BUSY, detail, retry_after_ms=1000)
                if size + len(chunk) > length:
                    await self._refuse_too_long(file, size + len(chunk), length)
                await asyncio.to_thread(_write, descriptor, file, size, chunk)
                size += len(chunk)
            if size < length:
                detail = f"Expected {length} bytes, the transfer ended after {size}."
                raise PeerError(Code.WRONG_LENGTH, detail, fix="Resume it.", retry_after_ms=1000)
            await asyncio.to_thread(_sync, descriptor, file)
        finally:
            os.close(descriptor)

    async def _refuse_too_long(self, file: Path, size: int, length: int) -> None:
        await asyncio.to_thread(file.unlink, missing_ok=True)
        raise PeerError(Code.WRONG_LENGTH, f"Expected {length} bytes, found at least {size}.")


def check_report(file: Path, sha256: bytes, limit: float | None) -> None:
    """As `Spool.check`, blocking."""
    if limit is None:
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").digest() != sha256:
                raise PeerError(Code.WRONG_DIGEST, fix="Send it again.", retry_after_ms=1000)
        return
    digest = hashlib.sha256()
    finite = in_range = True
    for block in float_blocks(file):
        digest.update(block.data)
        # max and min are NaN if any element is, and need no array of their own
        low, high = float(block.min()), float(block.max())
        finite = finite and bool(np.isfinite(low) and np.isfinite(high))
        in_range = in_range and -limit <= low and high <= limit
    if digest.digest() != sha256:
        raise PeerError(Code.WRONG_DIGEST, fix="Send it again.", retry_after_ms=1000)
    if not finite:
        raise PeerError(Code.NOT_FINITE)
    if not in_range:
        raise PeerError(Code.OUT_OF_RANGE, f"Expected numbers of at most {limit:g} in magnitude.")


def _open(file: Path, offset: int) -> int:
    with _refused(file):
        if not file.parent.exists():
            file.parent.mkdir(exist_ok=True)
            sync_folder(file.parent.parent)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    size = os.fstat(descriptor).st_size
    if size != offset:
        os.close(descriptor)
        raise PeerError(Code.WRONG_OFFSET, f"Expected offset {size}, found {offset}.", retry_after_ms=1)
    return descriptor


def _write(descriptor: int, file: Path, size: int, chunk: bytes) -> None:
    try:
        with _refused(file):
            write_all(descriptor, chunk)
    except PeerError:
        os.ftruncate(descriptor, size)
        raise


def _sync(descriptor: int, file: Path) -> None:
    with _refused(file):
        os.fsync(descriptor)
        sync_folder(file.parent)


@contextmanager
def _refused(file: Path) -> Iterator[None]:
    """A full disk is no fault of the client's: it shall come again later."""
    try:
        with disk_full(file):
            yield
    except LocalError as error:
        detail = "The aggregator cannot store the report now."
        raise PeerError(error.code, detail, retry_after_ms=DISK_RETRY_MS) from error
