"""The contract of blobs, in a directory and in an object store that speaks S3 (a real server, moto's)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

from aggregator import commit, objects, strategies
from aggregator.blobs import Blobs, digest_of
from aggregator.objects import ObjectBlobs, open_store
from aggregator.store.records import ModelRecord
from fedless.protocol.errors import Code, LocalError, PeerError
from tests.objects import ObjectServer

DATA = bytes(range(256)) * 4000
DAY_S = 86_400.0
Open = Callable[[], Blobs]


def in_directory(_request: pytest.FixtureRequest, folder: Path) -> Open:
    return lambda: Blobs(folder / "blobs")


def in_store(request: pytest.FixtureRequest, folder: Path) -> Open:
    server: ObjectServer = request.getfixturevalue("object_server")
    url, options = server.bucket(folder)
    return lambda: ObjectBlobs(folder / "blobs", open_store(url, options), 2**30)


@pytest.fixture(params=[in_directory, in_store], ids=["directory", "s3"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    opener: Open = request.param(request, tmp_path)
    return opener


@pytest.fixture
def blobs(reopen: Open) -> Blobs:
    return reopen()


@pytest.fixture
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectBlobs:
    made = in_store(request, tmp_path)()
    assert isinstance(made, ObjectBlobs)
    return made


async def chunks(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


async def whole(blobs: Blobs, digest: bytes, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(digest, offset, 99_999)])


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# -- both


async def test_what_is_put_is_found_under_its_digest(blobs: Blobs, reopen: Open) -> None:
    assert not blobs.has(digest(DATA))
    assert await blobs.put(chunks()) == (digest(DATA), len(DATA))
    for opened in (blobs, reopen()):
        assert opened.has(digest(DATA))
        assert opened.size(digest(DATA)) == len(DATA)
        assert opened.path(digest(DATA)).read_bytes() == DATA
        assert await whole(opened, digest(DATA)) == DATA


async def test_reading_goes_on_at_an_offset(blobs: Blobs) -> None:
    await blobs.put(chunks())
    for offset in (0, 1, 123_456, len(DATA)):
        assert await whole(blobs, digest(DATA), offset) == DATA[offset:]
    for offset in (-1, len(DATA) + 1):
        with pytest.raises(PeerError) as refusal:
            await whole(blobs, digest(DATA), offset)
        assert refusal.value.code is Code.WRONG_OFFSET


@pytest.mark.parametrize("unknown", [b"", b"short", bytes(32)], ids=["empty", "short", "unknown"])
async def test_unknown_blob_is_refused(blobs: Blobs, unknown: bytes) -> None:
    assert not blobs.has(unknown)
    assert not blobs.touch(unknown)
    assert not blobs.erase(unknown, 0.0)
    for ask in (blobs.path, blobs.size):
        with pytest.raises(PeerError) as refusal:
            ask(unknown)
        assert refusal.value.code is Code.UNKNOWN_BLOB


async def test_interrupted_put_leaves_nothing(blobs: Blobs, reopen: Open) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(broken())
    assert list(reopen().stored()) == []


def test_blobs_that_are_written_together(blobs: Blobs) -> None:
    rows = [(b"a" * 10, b"b" * 10), (b"c" * 10, b"d" * 10)]
    digests = blobs.put_together(rows, 2)
    assert [blobs.path(each).read_bytes() for each in digests] == [
        b"a" * 10 + b"c" * 10, b"b" * 10 + b"d" * 10,
    ]  # fmt: skip


def test_what_is_stored_is_listed_with_its_age(blobs: Blobs) -> None:
    put = {blobs.put_blocks([bytes([number])])[0] for number in range(5)}
    listed = dict(blobs.stored())
    assert listed.keys() == put
    assert all(-5 < age_s < 600 for age_s in listed.values())


def test_erasing_leaves_what_was_put_or_touched_lately(blobs: Blobs, reopen: Open) -> None:
    one, _ = blobs.put_blocks([b"one"])
    assert not blobs.erase(one, DAY_S)
    assert blobs.has(one)
    again = reopen()  # forgets who wanted it, knows when it was put
    assert not again.erase(one, DAY_S)
    assert again.erase(one, -3600.0)  # clocks of two machines
    assert not again.has(one)
    assert not again.erase(one, -3600.0), "once more is fine"
    with pytest.raises(PeerError):
        again.path(one)


def test_what_was_touched_is_not_erased_whatever_the_clock_says(blobs: Blobs) -> None:
    one, _ = blobs.put_blocks([b"one"])
    file = blobs._file(one)
    os.utime(file, (1.0, 1.0))  # as if the clock had jumped ahead by decades
    assert not blobs.erase(one, DAY_S)
    assert blobs.touch(one)
    assert blobs.has(one)


def test_erased_blob_can_be_put_again(blobs: Blobs, reopen: Open) -> None:
    one, _ = blobs.put_blocks([b"one"])
    assert reopen().erase(one, -3600.0)
    again = reopen()
    assert again.put_blocks([b"one"]) == (one, 3)
    assert again.path(one).read_bytes() == b"one"
    assert one in dict(again.stored())


def test_a_model_is_committed_from_blobs_to_blobs(blobs: Blobs, reopen: Open) -> None:
    strategy = strategies.make("fedavgm", {})
    old, _ = blobs.put_blocks([np.zeros(1000, "<f4").tobytes()])
    made = commit.next_model(reopen(), ModelRecord(0, old, 0), [np.ones(1000)], strategy, 1)
    opened = reopen()
    assert np.fromfile(opened.path(made.digest), "<f4").shape == (1000,)
    assert np.fromfile(opened.path(made.state["momentum"]), "<f4").shape == (1000,)


# -- the object store


def other_machine(remote: ObjectBlobs, folder: Path, cache_bytes: int = 2**30) -> ObjectBlobs:
    """The same store with an empty cache."""
    return ObjectBlobs(folder, remote._store, cache_bytes)


async def test_fetching_goes_on_where_it_was_cut_off(
    remote: ObjectBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost in the third range, for good; a later call fetches only the rest."""
    monkeypatch.setattr(objects, "RANGE_BYTES", 300_000)
    one, _ = await remote.put(chunks())
    asked: list[int] = []
    real, broken = obstore.get_range, True

    def flaky(store: Any, path: str, *, start: int, end: int) -> Any:
        asked.append(start)
        if broken and start >= 600_000:
            raise obstore.exceptions.GenericError("connection reset")
        return real(store, path, start=start, end=end)

    monkeypatch.setattr(obstore, "get_range", flaky)
    other = other_machine(remote, tmp_path / "other")
    with pytest.raises(LocalError) as failure:
        other.path(one)
    assert failure.value.code is Code.STORE_UNREACHABLE
    assert asked == [0, 300_000, *[600_000] * objects.ATTEMPTS]
    asked.clear()
    broken = False
    again = other_machine(remote, tmp_path / "other")
    assert again.path(one).read_bytes() == DATA
    assert asked == [600_000, 900_000]


async def test_object_with_other_bytes_is_noticed(remote: ObjectBlobs, tmp_path: Path) -> None:
    one, _ = await remote.put(chunks())
    name = one.hex()
    obstore.put(remote._store, f"{name[:2]}/{name}", DATA[:-1] + b"?")
    other = other_machine(remote, tmp_path / "other")
    with pytest.raises(LocalError, match="other bytes") as failure:
        other.path(one)
    assert failure.value.code is Code.STATE_CORRUPT
    assert list((tmp_path / "other" / "partial").iterdir()) == []


def test_an_old_object_is_dated_anew_when_it_is_put_or_touched(
    remote: ObjectBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else somebody else's sweep, or ours after a restart, would erase what a run is about to name."""
    one, _ = remote.put_blocks([b"one"])
    uploads: list[str] = []
    real = obstore.put

    def counting(store: Any, path: str, file: Any) -> Any:
        uploads.append(path)
        return real(store, path, file)

    monkeypatch.setattr(obstore, "put", counting)
    assert remote.touch(one)
    assert uploads == []
    monkeypatch.setattr(objects, "FRESH_S", -3600.0)
    other = other_machine(remote, tmp_path / "other")
    assert other.touch(one)
    assert other.put_blocks([b"one"])[0] == one
    assert len(uploads) == 2


def test_cache_is_trimmed_to_its_bound_without_losing_anything(
    remote: ObjectBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_machine(remote, tmp_path / "other", cache_bytes=25_000)
    digests = [other.put_blocks([bytes([number]) * 10_000])[0] for number in range(4)]
    assert other.trim() == 0, "they were used just now"
    for age, each in enumerate(digests):
        os.utime(other._file(each), (time.time() - 7200 - age,) * 2)
    assert other.trim() == 20_000
    assert [other._file(each).exists() for each in digests] == [True, True, False, False]
    assert [other.path(each).read_bytes()[:1] for each in digests] == [b"\0", b"\1", b"\2", b"\3"]


def test_only_digests_are_listed(remote: ObjectBlobs) -> None:
    obstore.put(remote._store, "readme.txt", b"not ours")
    assert list(remote.stored()) == []
    assert digest_of("AB" * 32) is None
    assert digest_of("ab" * 32) == b"\xab" * 32


def test_store_that_is_away_is_said_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=1)})
    options = tmp_path / "options.toml"
    options.write_text(
        'endpoint = "http://127.0.0.1:9"\naccess_key_id = "key"\nsecret_access_key = "hunter2"\n'
    )
    away = ObjectBlobs(tmp_path / "blobs", open_store("s3://bucket/x", options), 2**30)
    for use in (lambda: away.has(bytes(32)), lambda: away.path(bytes(32)), lambda: away.put_blocks([b"x"])):
        with pytest.raises(LocalError) as failure:
            use()
        assert failure.value.code is Code.STORE_UNREACHABLE
        assert "hunter2" not in str(failure.value)
    assert list((tmp_path / "blobs" / "incoming").iterdir()) == []


def test_bad_options_are_refused_without_being_shown(tmp_path: Path) -> None:
    options = tmp_path / "options.toml"
    for text in ('secret_access_key = "hunter2', 'no_such_key = "hunter2"'):
        options.write_text(text)
        with pytest.raises(LocalError) as failure:
            open_store("s3://bucket/x", options)
        assert failure.value.code is Code.CONFIG_INVALID
        assert "hunter2" not in str(failure.value)
