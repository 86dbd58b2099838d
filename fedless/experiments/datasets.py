"""The examples of an experiment: read once, divided, and written into each client's own folder.

Two forms: `npz`, one file of named arrays, and `idx`, a folder of MNIST's four files, plain or gzipped.
Arrays keep their type (uint8 images stay uint8): the schema check against the function's manifest is the
device's own.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.idx import read_idx
from fedless.experiments.config import Data
from fedless.protocol.errors import Code, LocalError

Arrays = Mapping[str, NDArray[Any]]
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class Split:
    """Named arrays of one length each: `train` is divided among clients, `test` stays with the aggregator."""

    train: Arrays
    test: Arrays


def idx_folder(data: Data, folder: Path) -> Data:
    """The same experiment on the idx files in `folder` (`--data DIR`)."""
    return replace(data, kind="idx", train=folder, test=folder)


def load(data: Data, seed: int) -> Split:
    """Both parts; of the training part `data.examples` drawn at random by `seed`, in the file's order.

    Raises `LocalError`: DATA_MISSING, DATA_UNREADABLE, DATA_SHAPE, DATA_EMPTY.
    """
    read = _read_npz if data.kind == "npz" else _read_idx
    train = _checked(read(data.train, "train"), data.train, data.label)
    test = _checked(read(data.test, "test"), data.test, data.label)
    count = train[data.label].shape[0]
    if data.examples > count:
        detail = f"{data.examples} examples are asked for, {data.train} has {count}."
        raise LocalError(Code.DATA_EMPTY, detail, fix="Lower data.examples or give more data with --data.")
    if data.examples:
        chosen = np.sort(np.random.default_rng(seed).choice(count, data.examples, replace=False))
        train = take(train, chosen)
    return Split(train, test)


def take(arrays: Arrays, indices: NDArray[np.integer[Any]]) -> Arrays:
    """These examples of every array."""
    return {name: array[indices] for name, array in arrays.items()}


def to_npz(arrays: Arrays) -> bytes:
    """One compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _read_npz(path: Path, _part: str) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise LocalError(Code.DATA_MISSING, f"{path} does not exist.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{path} is not a readable .npz file: {error}.") from None
    raise LocalError(Code.DATA_UNREADABLE, f"{path} is a single array, not an .npz file.")


def _read_idx(folder: Path, part: str) -> Arrays:
    images, labels = _IDX[part]
    try:
        return {"x": read_idx(folder / images), "y": read_idx(folder / labels).astype(np.int32)}
    except FileNotFoundError as error:
        detail = f"{error.filename} does not exist; {folder} needs {images} and {labels}, plain or as .gz."
        raise LocalError(Code.DATA_MISSING, detail) from None


def _checked(arrays: Arrays, path: Path, label: str) -> Arrays:
    if label not in arrays:
        detail = f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}, but no label {label!r}."
        raise LocalError(Code.DATA_MISSING, detail, fix="Name it in data.label.")
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        detail = f"The arrays of {path} differ in length: {counts}."
        raise LocalError(Code.DATA_SHAPE, detail)
    if arrays[label].ndim != 1:
        detail = f"{label!r} in {path} must be a vector, has the shape {arrays[label].shape}."
        raise LocalError(Code.DATA_SHAPE, detail)
    if counts[label] == 0:
        raise LocalError(Code.DATA_EMPTY, f"{path} has no examples.")
    return arrays
