"""Examples that fit a manifest: the schema check, the split, and batches.

Arrays stay as the provider gave them (uint8 images stay uint8) and are converted batch by batch, so that a
data set costs its stored size and not four times as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input, Label, Model

Array = NDArray[Any]
_PIXEL_MAX = 255.0
_SPLIT_SEED = 20_211_104


@dataclass(frozen=True)
class _Column:
    """`array`: [N, *shape] as stored; a batch is `array * scale + shift` as `dtype`."""

    array: Array
    dtype: str
    scale: float = 1.0
    shift: float = 0.0


class Dataset:
    """N checked examples.

    Raises `LocalError` at construction: DATA_MISSING, DATA_EMPTY, DATA_SHAPE, DATA_DTYPE, DATA_NOT_FINITE,
    DATA_RANGE. The detail says what the model needs and what was found.
    """

    def __init__(self, arrays: Mapping[str, Array], model: Model, *, labels: bool = True) -> None:
        wanted: list[Input | Label] = [*model.inputs, *(model.labels if labels else ())]
        missing = [spec.name for spec in wanted if spec.name not in arrays]
        if missing:
            raise LocalError(
                Code.DATA_MISSING,
                f"The model needs {', '.join(missing)}; found was {', '.join(sorted(arrays)) or '-'}.",
                fix="Name them in [data] columns.",
            )
        self._columns = {spec.name: _column(np.asarray(arrays[spec.name]), spec) for spec in wanted}
        counts = {name: column.array.shape[0] for name, column in self._columns.items()}
        if len(set(counts.values())) != 1:
            raise LocalError(Code.DATA_SHAPE, f"The numbers of examples differ: {_listed(counts)}.")
        self.count = next(iter(counts.values()))

    def part(self, holdout: float, *, held_out: bool) -> NDArray[np.intp]:
        """The indices of the held-out examples, or of the others: the same ones every time for one N.

        `holdout` is a fraction in 0..1; at least one example stays for training. Raises
        `LocalError(DATA_EMPTY)` if the part asked for is empty.
        """
        kept_out = min(math.floor(self.count * holdout), self.count - 1)
        order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(self.count)
        indices = np.sort(order[:kept_out] if held_out else order[kept_out:])
        if indices.size == 0:
            raise LocalError(
                Code.DATA_EMPTY,
                f"{self.count} examples with a holdout of {holdout} leave nothing to evaluate on.",
            )
        return indices

    def fill(self, indices: NDArray[np.intp], into: Mapping[str, Array]) -> None:
        """Write these examples into the first rows of the arrays `into`; the rows after them become 0."""
        for name, column in self._columns.items():
            target = into[name]
            target[indices.size :] = 0
            rows = column.array[indices]
            if column.scale == 1.0 and column.shift == 0.0:
                target[: indices.size] = rows
            else:
                np.multiply(rows, np.float32(column.scale), out=target[: indices.size], dtype=np.float32)
                if column.shift:
                    target[: indices.size] += np.float32(column.shift)


def _column(array: Array, spec: Input | Label) -> _Column:
    if array.ndim == 0 or array.shape[0] == 0:
        raise LocalError(Code.DATA_EMPTY, f"{spec.name} has no examples.")
    array = _shaped(array, spec)
    if array.dtype.kind not in "iuf":
        raise LocalError(
            Code.DATA_DTYPE, f"{spec.name} must be {spec.dtype}, is {array.dtype} (numbers are needed)."
        )
    if _is_pixels(array, spec):
        span = float(spec.maximum) - float(spec.minimum)  # type: ignore[union-attr,arg-type]
        return _Column(array, spec.dtype, span / _PIXEL_MAX, float(spec.minimum))  # type: ignore[union-attr,arg-type]
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # min and max carry a NaN through
        raise LocalError(Code.DATA_NOT_FINITE, f"{spec.name} holds NaN or infinite numbers.")
    if spec.dtype == "int32" and array.dtype.kind == "f":
        array = _whole(array, spec.name)
    _check_range(low, high, spec)
    return _Column(array, spec.dtype)


def _is_pixels(array: Array, spec: Input | Label) -> bool:
    """uint8 where the model has a range of floats: 0..255 stands for that range."""
    return (
        array.dtype == np.uint8
        and isinstance(spec, Input)
        and spec.dtype == "float32"
        and spec.minimum is not None
    )


def _shaped(array: Array, spec: Input | Label) -> Array:
    """[N, *spec.shape]; dimensions of size 1 may be there or not, as in 28 x 28 against 28 x 28 x 1."""
    found = array.shape[1:]
    if found == spec.shape:
        return array
    if [size for size in found if size != 1] != [size for size in spec.shape if size != 1]:
        raise LocalError(
            Code.DATA_SHAPE, f"One example of {spec.name} must have the shape {spec.shape}, has {found}."
        )
    return array.reshape(array.shape[0], *spec.shape)


def _whole(array: Array, name: str) -> Array:
    if not np.array_equal(array, np.floor(array)):
        raise LocalError(Code.DATA_DTYPE, f"{name} must be whole numbers, has fractions.")
    return array.astype(np.int64)


def _check_range(low: float, high: float, spec: Input | Label) -> None:
    if isinstance(spec, Label):
        bounds = (0.0, float(spec.classes - 1)) if spec.classes else None
    else:
        bounds = None if spec.minimum is None or spec.maximum is None else (spec.minimum, spec.maximum)
    if bounds is None and spec.dtype == "int32":
        bounds = (-(2.0**31), 2.0**31 - 1)
    if bounds is not None and not (bounds[0] <= low and high <= bounds[1]):
        raise LocalError(
            Code.DATA_RANGE,
            f"{spec.name} must lie in {bounds[0]:g}..{bounds[1]:g}, lies in {low:g}..{high:g}.",
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} has {count}" for name, count in counts.items())
