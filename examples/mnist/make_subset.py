"""Make `examples/mnist/data`: a subset of MNIST, drawn from the full idx files with a fixed seed.

    python examples/mnist/make_subset.py --data DIR-OF-THE-FULL-FILES [--out DIR]

500 training and 200 test images of each digit, in the order of the original files, as idx files under the
original names: whatever reads MNIST reads these. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.idx import read_idx

SEED = 2021
PER_CLASS = {"train": 500, "t10k": 200}


def choose(labels: NDArray[Any], per_class: int, random: np.random.Generator) -> NDArray[np.intp]:
    """`per_class` positions of each label 0..9, sorted."""
    return np.sort(
        np.concatenate(
            [random.choice(np.flatnonzero(labels == digit), per_class, replace=False) for digit in range(10)]
        )
    )


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """A gzipped idx file of unsigned bytes, without a time stamp."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), 9, mtime=0))


def main() -> None:
    """Read the full set, write the subset."""
    parser = argparse.ArgumentParser(description="Make the example's subset of MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four full idx files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.PCG64(SEED))
    for part, per_class in PER_CLASS.items():
        images = read_idx(arguments.data / f"{part}-images-idx3-ubyte")
        labels = read_idx(arguments.data / f"{part}-labels-idx1-ubyte")
        chosen = choose(labels, per_class, random)
        write_idx(arguments.out / f"{part}-images-idx3-ubyte.gz", images[chosen])
        write_idx(arguments.out / f"{part}-labels-idx1-ubyte.gz", labels[chosen])
        print(f"{part}: {chosen.size} images")


if __name__ == "__main__":
    main()
