"""Verifying and unpacking on the device: each refusal by its code, and nothing half-way on the disk."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_runtime import bundle
from fedless.protocol import bundle_format, crypto
from fedless.protocol.errors import Code, FedlessError
from fedless.protocol.manifest import Manifest, dump

KEY = bytes(range(32))
PUBLIC = crypto.ed25519_public(KEY)
PUBLISHERS = {crypto.key_id(PUBLIC): PUBLIC}


def make(manifest: Manifest | None = None, **files: bytes) -> bytes:
    manifest = manifest or Manifest("hello", 5, entry="app:handle")
    return bundle_format.pack(
        {"function.toml": dump(manifest).encode(), "pkg/app.py": b"x = 1\n", **files}, KEY
    )


def refusal(data: bytes, directory: Path, digest: str = "", newest_seen: int = 0) -> Code:
    with pytest.raises(FedlessError) as caught:
        bundle.unpack(data, digest or bundle_format.digest(data), PUBLISHERS, directory, newest_seen)
    assert [path for path in directory.iterdir() if path.is_dir()] == []
    return caught.value.code


def test_a_good_bundle_is_unpacked_under_its_digest(tmp_path: Path) -> None:
    data = make()
    unpacked = bundle.unpack(data, bundle_format.digest(data), PUBLISHERS, tmp_path)
    assert unpacked.directory == tmp_path / bundle_format.digest(data)
    assert unpacked.manifest.name == "hello"
    assert (unpacked.directory / "pkg" / "app.py").read_bytes() == b"x = 1\n"
    assert bundle.find(tmp_path, unpacked.digest) == unpacked


def test_unpacking_twice_changes_nothing(tmp_path: Path) -> None:
    data = make()
    first = bundle.unpack(data, bundle_format.digest(data), PUBLISHERS, tmp_path)
    changed = (first.directory / "function.toml").stat().st_mtime_ns
    assert bundle.unpack(data, bundle_format.digest(data), PUBLISHERS, tmp_path) == first
    assert (first.directory / "function.toml").stat().st_mtime_ns == changed


def test_an_unknown_digest_is_not_found(tmp_path: Path) -> None:
    assert bundle.find(tmp_path, "00" * 32) is None


def test_wrong_digest_is_refused(tmp_path: Path) -> None:
    assert refusal(make(), tmp_path, digest="00" * 32) is Code.BUNDLE_DIGEST


def test_unsigned_bundle_is_refused(tmp_path: Path) -> None:
    data = make()
    assert refusal(data[:32] + bytes(64) + data[96:], tmp_path) is Code.BUNDLE_FORGED


def test_bundle_of_an_unknown_publisher_is_refused(tmp_path: Path) -> None:
    data = bundle_format.pack({"function.toml": b""}, bytes(32))
    assert refusal(data, tmp_path) is Code.BUNDLE_PUBLISHER


def test_bundle_for_a_newer_runtime_is_refused(tmp_path: Path) -> None:
    data = make(Manifest("hello", 1, entry="a:b", runtime_min=2, runtime_max=3))
    assert refusal(data, tmp_path) is Code.BUNDLE_RUNTIME


def test_bundle_older_than_one_that_was_seen_is_refused(tmp_path: Path) -> None:
    assert refusal(make(), tmp_path, newest_seen=6) is Code.BUNDLE_OLDER


def test_bundle_with_a_bad_manifest_is_refused(tmp_path: Path) -> None:
    data = bundle_format.pack({"function.toml": b"format = 1\n"}, KEY)
    assert refusal(data, tmp_path) is Code.MANIFEST_INVALID


def test_bundle_without_its_graph_is_refused(tmp_path: Path) -> None:
    text = (Path("examples") / "mnist" / "function-mlp" / "function.toml").read_bytes()
    assert refusal(bundle_format.pack({"function.toml": text}, KEY), tmp_path) is Code.BUNDLE_MALFORMED


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refusal(make(), tmp_path) is Code.DISK_FULL


def test_power_cut_while_unpacking_is_cleaned_up(tmp_path: Path) -> None:
    left = tmp_path / ".unpacking-abc"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    data = make()
    unpacked = bundle.unpack(data, bundle_format.digest(data), PUBLISHERS, tmp_path)
    assert list(tmp_path.iterdir()) == [unpacked.directory]


def test_two_that_unpack_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    bundles = [
        make(Manifest("hello", version, entry="a:b"), **{"big.py": b"#" * 10**6}) for version in range(1, 9)
    ]
    with ThreadPoolExecutor(8) as pool:
        unpacked = list(
            pool.map(
                lambda data: bundle.unpack(data, bundle_format.digest(data), PUBLISHERS, tmp_path),
                bundles * 2,
            )
        )
    assert {path.name for path in tmp_path.iterdir()} == {one.digest for one in unpacked}
    assert all((one.directory / "pkg" / "app.py").is_file() for one in unpacked)
