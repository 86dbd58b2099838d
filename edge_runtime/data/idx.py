"""Provider `idx`: a folder of idx files (the format of MNIST), plain or gzipped.

`columns` gives the file of each input and label; without it the training files of MNIST are meant. The
format: two zero bytes, a type byte, the number of dimensions, each dimension as u32 big-endian, then the
elements big-endian.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Model

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DEFAULT_INPUT, _DEFAULT_LABEL = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def load(source: DataSource, model: Model, *, labels: bool) -> Mapping[str, NDArray[Any]]:
    """The arrays of the folder's files. Raises `LocalError(DATA_UNREADABLE)`, `FileNotFoundError`."""
    files = {item.name: source.columns.get(item.name, (_DEFAULT_INPUT,))[0] for item in model.inputs}
    if labels:
        files |= {item.name: source.columns.get(item.name, (_DEFAULT_LABEL,))[0] for item in model.labels}
    return {name: read_idx(Path(source.path) / file) for name, file in files.items()}


def read_idx(path: Path) -> NDArray[Any]:
    """One idx file; `path` may leave the ending `.gz` out. Raises `LocalError(DATA_UNREADABLE)`."""
    zipped = path.with_name(path.name + ".gz")
    if path.suffix == ".gz" or (not path.exists() and zipped.exists()):
        path = path if path.suffix == ".gz" else zipped
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{path} is not a gzip file: {error}.") from None
    return _array(data, path)


def _array(data: bytes, path: Path) -> NDArray[Any]:
    try:
        zero, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except struct.error:
        raise LocalError(Code.DATA_UNREADABLE, f"{path} is too short for an idx file.") from None
    if zero != 0 or kind not in _TYPES:
        raise LocalError(Code.DATA_UNREADABLE, f"{path} does not begin as an idx file does.")
    dtype = np.dtype(_TYPES[kind])
    begin = 4 + 4 * rank
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - begin != expected:
        raise LocalError(
            Code.DATA_UNREADABLE, f"{path} announces {expected} bytes of elements, has {len(data) - begin}."
        )
    return np.frombuffer(data, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
