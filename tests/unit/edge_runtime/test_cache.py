"""The cache by digest: resumed, verified, bounded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edge_runtime.cache import Cache, remove_unused_functions
from fedless.protocol.errors import Code, LocalError, PeerError


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def put(cache: Cache, data: bytes, age_s: int = 0) -> bytes:
    with cache.part(digest(data)) as part:
        part.write(data)
        path = part.finish()
    os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    return digest(data)


def test_download_goes_on_from_where_it_ended(tmp_path: Path) -> None:
    cache, data = Cache(tmp_path, 1000), b"0123456789"
    with cache.part(digest(data)) as part:
        part.write(data[:4])
    assert cache.find(digest(data)) is None
    with cache.part(digest(data)) as part:
        assert part.offset == 4
        part.write(data[4:])
        assert part.finish().read_bytes() == data
    assert cache.find(digest(data)) == tmp_path / digest(data).hex()
    assert cache.size() == 10


def test_corrupted_download_is_refused_and_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    with cache.part(digest(b"right")) as part:
        part.write(b"wrong")
        with pytest.raises(PeerError) as caught:
            part.finish()
    assert caught.value.code is Code.WRONG_DIGEST
    assert list(tmp_path.iterdir()) == []


def test_blob_that_the_card_forgot_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    name = put(cache, b"model")
    (tmp_path / name.hex()).write_bytes(b"modem")
    assert cache.find(name) is None
    assert list(tmp_path.iterdir()) == []


def test_least_recently_used_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    old, middle, new = (put(cache, bytes([n]) * 10, age) for n, age in ((1, 300), (2, 200), (3, 100)))
    cache.make_room(10, frozenset({old}))
    assert cache.find(old)
    assert cache.find(middle) is None
    assert cache.find(new)
    with pytest.raises(LocalError, match="cache_mb") as caught:
        cache.make_room(25, frozenset({old}))
    assert caught.value.code is Code.DISK_FULL


def test_unused_functions_are_removed(tmp_path: Path) -> None:
    names = [digest(bytes([n])) for n in range(5)]
    for age, name in enumerate(names):
        folder = tmp_path / name.hex()
        folder.mkdir()
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    remove_unused_functions(tmp_path, frozenset({names[4]}), most=2)
    assert {path.name for path in tmp_path.iterdir()} == {names[n].hex() for n in (0, 1, 4)}


def test_a_download_that_a_power_cut_emptied_is_asked_for_again(tmp_path: Path) -> None:
    """It is synced while the instance works: before that, its name may outlive its bytes."""
    cache, data = Cache(tmp_path, 1000), b"0123456789"
    key = put(cache, data)
    (tmp_path / key.hex()).write_bytes(b"")
    assert cache.find(key) is None
    assert put(cache, data) == key
    cache.settle()
    assert cache.find(key) is not None
    (tmp_path / put(cache, b"other").hex()).unlink()
    cache.settle()
