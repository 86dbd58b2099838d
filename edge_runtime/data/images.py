"""Provider `images`: a folder with one subfolder of PNG or JPEG files per class.

Needs the extra `images` (Pillow). Classes are numbered by `classes`, or by the sorted names of the
subfolders. An image must have the model's size; one channel reads it as grey, three as RGB. Without labels
(infer) the files may lie in the folder itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Input, Model

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_CHANNELS = {1: "L", 3: "RGB"}


def load(source: DataSource, model: Model, *, labels: bool) -> Mapping[str, NDArray[Any]]:
    """uint8 images [N, H, W, C] and their classes. Raises `LocalError(NOT_INSTALLED | DATA_*)`."""
    item = _image_input(model)
    files = _files(source, labels=labels)
    images = np.empty((len(files), *_size(item)), np.uint8)
    for row, (path, _) in zip(images, files, strict=True):
        row[...] = _read(path, item)
    arrays: dict[str, NDArray[Any]] = {item.name: images}
    if labels:
        arrays[model.labels[0].name] = np.array([number for _, number in files], np.int64)
    return arrays


def _image_input(model: Model) -> Input:
    """The model's only input, if it is an image."""
    item = model.inputs[0]
    if len(model.inputs) != 1 or len(model.labels) > 1 or _size(item)[2] not in _CHANNELS:
        raise LocalError(
            Code.DATA_SHAPE,
            "A folder of images fits a model with one input [H, W, 1 or 3] and one label; "
            f"this one has {', '.join(f'{spec.name} {list(spec.shape)}' for spec in model.inputs)}.",
        )
    return item


def _size(item: Input) -> tuple[int, int, int]:
    height, width, channels = (*item.shape, 1, 1, 1)[:3]
    return height, width, channels


def _files(source: DataSource, *, labels: bool) -> list[tuple[Path, int]]:
    root = Path(source.path)
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    names = source.classes or tuple(sorted(folders))
    if not labels and not folders:
        folders, names = {"": root}, ("",)
    unknown = sorted(folders.keys() - set(names))
    if unknown:
        raise LocalError(Code.DATA_RANGE, f"{root} has folders that are not classes: {', '.join(unknown)}.")
    return [
        (path, number)
        for number, name in enumerate(names)
        if name in folders
        for path in sorted(folders[name].iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]


def _read(path: Path, item: Input) -> NDArray[np.uint8]:
    """One image as uint8 [H, W, C]."""
    try:
        from PIL import Image  # noqa: PLC0415  (an extra)
    except ImportError:
        raise LocalError(Code.NOT_INSTALLED, "Images need Pillow.", fix="Install fedless[images].") from None
    height, width, channels = _size(item)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(_CHANNELS[channels]), np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LocalError(Code.DATA_UNREADABLE, f"{path} is not a readable image: {error}.") from None
    if pixels.shape[:2] != (height, width):
        raise LocalError(
            Code.DATA_SHAPE,
            f"{path} is {pixels.shape[1]} x {pixels.shape[0]}; the model needs {width} x {height}.",
        )
    return pixels.reshape(height, width, channels)
