"""Provider `npz`: one file of `numpy.savez`, an array for each input and label.

Pickled objects are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Model


def load(source: DataSource, model: Model, *, labels: bool) -> Mapping[str, NDArray[Any]]:
    """The arrays of the file, under the manifest's names. Raises `LocalError(DATA_UNREADABLE)`."""
    names = [item.name for item in model.inputs]
    if labels:
        names.extend(item.name for item in model.labels)
    try:
        # numpy leaves a file that it opened itself open when it cannot read it.
        with Path(source.path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise LocalError(Code.DATA_UNREADABLE, f"{source.path} is a single array, not an .npz file.")
            return {
                name: archive[source.where(name)] for name in names if source.where(name) in archive.files
            }
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise LocalError(
            Code.DATA_UNREADABLE, f"{source.path} is not a readable .npz file: {error}."
        ) from None
