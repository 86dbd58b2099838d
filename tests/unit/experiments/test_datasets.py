"""Data sets: both forms, a seeded choice of examples, and files that are not what they should be."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest

from fedless.experiments.config import Data
from fedless.experiments.datasets import idx_folder, load, take, to_npz
from fedless.protocol.errors import Code, LocalError

X = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2)
Y = np.arange(40, dtype=np.int32) % 10


def npz(tmp_path: Path, examples: int = 0, **arrays: object) -> Data:
    given = {"x": X, "y": Y} | arrays
    for part in ("train", "test"):
        (tmp_path / f"{part}.npz").write_bytes(
            to_npz({name: np.asarray(array) for name, array in given.items()})
        )
    return Data("npz", tmp_path / "train.npz", tmp_path / "test.npz", examples, "y")


def idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_npz_arrays_keep_their_type(tmp_path: Path) -> None:
    split = load(npz(tmp_path), seed=1)
    assert split.train["x"].dtype == np.uint8
    np.testing.assert_array_equal(split.test["y"], Y)


def test_examples_are_drawn_by_the_seed_and_only_from_training_data(tmp_path: Path) -> None:
    data = npz(tmp_path, examples=7)
    first, again, other = (load(data, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train["x"], again.train["x"])
    assert first.train["y"].shape == (7,)
    assert first.test["y"].shape == (40,)
    assert not np.array_equal(first.train["x"], other.train["x"])
    np.testing.assert_array_equal(X[first.train["x"][:, 0, 0] // 4], first.train["x"])


def test_idx_folder_is_read_as_images_and_labels(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", X)
        idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", Y)
    split = load(idx_folder(npz(tmp_path), tmp_path), seed=1)
    np.testing.assert_array_equal(split.train["x"], X)
    assert split.train["y"].dtype == np.int32


def test_what_is_written_for_a_device_is_read_back(tmp_path: Path) -> None:
    written = to_npz(take({"x": X, "y": Y}, np.array([3, 5])))
    with np.load(io.BytesIO(written)) as archive:
        np.testing.assert_array_equal(archive["x"], X[[3, 5]])


def test_unusable_data_is_refused_with_its_reason(tmp_path: Path) -> None:
    def refusal(data: Data) -> Code:
        with pytest.raises(LocalError) as caught:
            load(data, seed=1)
        return caught.value.code

    assert refusal(npz(tmp_path, examples=41)) is Code.DATA_EMPTY
    assert refusal(npz(tmp_path, x=X[:39])) is Code.DATA_SHAPE
    assert refusal(npz(tmp_path, y=X)) is Code.DATA_SHAPE
    assert refusal(npz(tmp_path, x=X[:0], y=Y[:0])) is Code.DATA_EMPTY
    data = npz(tmp_path)
    assert refusal(Data("npz", data.train, data.test, 0, "label")) is Code.DATA_MISSING
    assert refusal(idx_folder(data, tmp_path)) is Code.DATA_MISSING
    data.train.write_bytes(b"PK no zip")
    assert refusal(data) is Code.DATA_UNREADABLE
    data.train.unlink()
    assert refusal(data) is Code.DATA_MISSING


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    data = npz(tmp_path)
    np.savez(data.train, x=X, y=np.array([{}] * 40, dtype=object))
    with pytest.raises(LocalError, match="allow_pickle"):
        load(data, seed=1)
