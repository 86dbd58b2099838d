"""A client's own examples: providers read them, the schema check compares them with the manifest.

`trainer` calls `open_dataset` before any training. A provider is one function

    load(source: DataSource, model: manifest.Model, *, labels: bool) -> Mapping[str, numpy.ndarray]

which returns an array of N examples for each input (and label, if `labels`) of the manifest, by name. It need
not check anything: `Dataset` does. The kinds are in `KINDS`; one module each, imported only when used. An
author's own provider is a file `provider.py` in the bundle (kind `own`) with a function of the same name and
meaning:

    def load(path: str, options: dict) -> dict[str, numpy.ndarray]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import Model

if TYPE_CHECKING:
    from edge_runtime.data.dataset import Dataset

__all__ = ["DataSource", "Dataset", "open_dataset"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (what the module holds)
    """`Dataset` brings numpy in, which the participant reads its settings without."""
    if name != "Dataset":
        raise AttributeError(name)
    from edge_runtime.data.dataset import Dataset  # noqa: PLC0415

    return Dataset


def open_dataset(source: DataSource, model: Model, function_dir: str, *, labels: bool = True) -> Dataset:
    """The instance: the examples of `source`, checked against `model`.

    Raises `LocalError` with a DATA_* code that says what was expected and what was found, or NOT_INSTALLED.
    """
    from edge_runtime.data.dataset import Dataset  # noqa: PLC0415  (see `__getattr__`)

    module = importlib.import_module(f"edge_runtime.data.{source.kind}")
    load: Callable[..., Mapping[str, Any]] = module.load
    try:
        own = source.kind == "own"
        arrays = load(source, function_dir) if own else load(source, model, labels=labels)
    except FileNotFoundError as error:
        raise LocalError(
            Code.DATA_MISSING,
            f"{error.filename or source.path} does not exist.",
            fix="Check [data] in the device's configuration.",
        ) from None
    except PermissionError as error:
        raise LocalError(
            Code.DATA_UNREADABLE, f"{error.filename or source.path} may not be read by this process."
        ) from None
    return Dataset(arrays, model, labels=labels)
