"""Blobs appear whole or not at all, under their digest."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.blobs import Blobs
from fedless.protocol.errors import Code, LocalError, PeerError

DATA = bytes(range(256)) * 40


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


async def whole(blobs: Blobs, digest: bytes, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(digest, offset, 999)])


@contextmanager
def disk_with(space_bytes: int) -> Iterator[None]:
    """No file may grow beyond this many bytes: the kernel then fails writes as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_blob_is_found_under_its_digest(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest, size = await blobs.put(chunks(DATA))
    assert (digest, size) == (hashlib.sha256(DATA).digest(), len(DATA))
    assert blobs.has(digest)
    assert blobs.size(digest) == len(DATA)
    assert blobs.path(digest).read_bytes() == DATA
    assert await whole(blobs, digest) == DATA


async def test_reading_resumes_at_any_offset(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest, _ = await blobs.put_bytes(DATA)
    assert await whole(blobs, digest, 1234) == DATA[1234:]
    assert await whole(blobs, digest, len(DATA)) == b""
    with pytest.raises(PeerError) as refusal:
        await whole(blobs, digest, len(DATA) + 1)
    assert refusal.value.code is Code.WRONG_OFFSET


async def test_unknown_digest_is_refused(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    for digest in (bytes(32), b"", b"../../etc/passwd"):
        assert not blobs.has(digest)
        with pytest.raises(PeerError) as refusal:
            blobs.path(digest)
        assert refusal.value.code is Code.UNKNOWN_BLOB


async def test_the_same_blob_twice_is_kept_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    assert await blobs.put_bytes(DATA) == await blobs.put_bytes(DATA)
    assert len(files(tmp_path)) == 1


async def test_a_transfer_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise ConnectionError

    blobs = Blobs(tmp_path)
    with pytest.raises(ConnectionError):
        await blobs.put(broken())
    assert files(tmp_path) == []


async def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest, _ = await blobs.put_bytes(b"was here before")
    with disk_with(4096), pytest.raises(LocalError) as failure:
        await blobs.put(chunks(DATA))
    assert failure.value.code is Code.DISK_FULL
    assert await whole(blobs, digest) == b"was here before"
    assert len(files(tmp_path)) == 1


async def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    Blobs(tmp_path)
    (tmp_path / "incoming" / "tmpabc").write_bytes(b"half")
    Blobs(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []
