"""Spool files and the running sum: whole reports only, block by block."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from aggregator.uploads import BLOCK, FloatSum, RingSum, Spool, check_report, float_blocks, take_out
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Encoding


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def written(folder: Path, vector: np.ndarray, name: str = "report") -> Path:
    file = folder / name
    file.write_bytes(vector.astype("<f4").tobytes())
    return file


def digest_of(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


async def test_a_report_is_received_in_pieces_and_resumed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(PeerError) as refusal:
        await spool.receive(1, "a", 0, 6, chunks(b"ab", b"c"))
    assert (refusal.value.code, refusal.value.retry_after_ms) == (Code.WRONG_LENGTH, 1000)
    assert spool.offset(1, "a") == 3
    await spool.receive(1, "a", 3, 6, chunks(b"def"))
    assert spool.file(1, "a").read_bytes() == b"abcdef"


async def test_a_hanging_transfer_ends_when_a_newer_one_begins(tmp_path: Path) -> None:
    spool, go_on, began = Spool(tmp_path), asyncio.Event(), asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield b"ab"
        began.set()
        await go_on.wait()
        yield b"XX"

    old = asyncio.create_task(spool.receive(1, "a", 0, 6, hanging()))
    await began.wait()
    await spool.receive(1, "a", 2, 6, chunks(b"cdef"))
    go_on.set()
    with pytest.raises(PeerError) as refusal:
        await old
    assert refusal.value.code is Code.BUSY
    assert spool.file(1, "a").read_bytes() == b"abcdef"


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".", "A"])
def test_a_client_id_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PeerError) as refusal:
        Spool(tmp_path).file(1, name)
    assert refusal.value.code is Code.RESERVED_NAME


async def test_erasing_takes_the_round_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for round_id in (1, 2):
        await spool.receive(round_id, "a", 0, 2, chunks(b"ab"))
    await spool.erase_round(1)
    assert [spool.offset(round_id, "a") for round_id in (1, 2)] == [0, 2]
    await spool.keep_only(set())
    assert spool.offset(2, "a") == 0


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks_cover_the_whole_file(tmp_path: Path, size: int) -> None:
    vector = np.arange(size, dtype=np.float32)
    file = written(tmp_path, vector)
    assert np.array_equal(np.concatenate([block.copy() for block in float_blocks(file)]), vector)
    total = FloatSum(size)
    total.add(file, 3, 3)
    total.add(file, 2, 2)
    assert np.array_equal(total.total, vector.astype(np.float64) * 5)
    assert total.weight == 5


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("size", [1, BLOCK, 2 * BLOCK + 5])
def test_a_masked_report_that_is_taken_out_leaves_no_trace(tmp_path: Path, size: int, bits: int) -> None:
    random = np.random.default_rng(size)
    sum_ = RingSum(size, Encoding.RING16 if bits == 16 else Encoding.RING32)
    words = [random.integers(0, 2**bits, size, dtype=sum_.total.dtype) for _ in range(3)]
    files = [tmp_path / f"{number}.part" for number in range(3)]
    for file, vector in zip(files, words, strict=True):
        file.write_bytes(vector.tobytes())
        sum_.add(file, 1, 1)
    take_out(sum_.total, files[1])
    assert np.array_equal(sum_.total, words[0] + words[2])


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (np.nan, Code.NOT_FINITE),
        (np.inf, Code.NOT_FINITE),
        (-np.inf, Code.NOT_FINITE),
        (-11, Code.OUT_OF_RANGE),
    ],
)
@pytest.mark.parametrize("place", [0, BLOCK, 2 * BLOCK + 4])
def test_one_bad_number_anywhere_is_found(tmp_path: Path, value: float, code: Code, place: int) -> None:
    vector = np.ones(2 * BLOCK + 5, np.float32)
    vector[place] = value
    file = written(tmp_path, vector)
    with pytest.raises(PeerError) as refusal:
        check_report(file, digest_of(file), 10.0)
    assert refusal.value.code is code


def test_other_bytes_than_announced_are_found(tmp_path: Path) -> None:
    file = written(tmp_path, np.ones(5))
    check_report(file, digest_of(file), 1.0)
    with pytest.raises(PeerError) as refusal:
        check_report(file, bytes(32), 1.0)
    assert refusal.value.code is Code.WRONG_DIGEST


def test_checking_and_adding_never_hold_a_whole_update(tmp_path: Path) -> None:
    size = 16 * BLOCK
    file = written(tmp_path, np.ones(size))
    total, digest = FloatSum(size), digest_of(file)
    tracemalloc.start()
    check_report(file, digest, 1.0)
    total.add(file, 1, 1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * size / 3  # of the update's 4 bytes per coordinate
