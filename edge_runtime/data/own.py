"""Provider `own`: the author's `provider.py` from the bundle.

It has one function,

    def load(path: str, options: dict) -> dict[str, numpy.ndarray]

which returns N examples for each input and label of the manifest. It runs inside the instance, with its
limits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.manifest import PROVIDER_FILE


def load(source: DataSource, function_dir: str) -> Mapping[str, NDArray[Any]]:
    """What the author's function returns.

    Raises `PeerError(INSTANCE_FAILED)` if the bundle has no such function, `PeerError(INSTANCE_BAD_RESULT)`
    if it returns something else, `LocalError(DATA_UNREADABLE)` if it raises.
    """
    function = _function(Path(function_dir) / PROVIDER_FILE)
    try:
        arrays = function(source.path, dict(source.options))
    except (MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001  (the author's code raises what it likes)
        raise LocalError(
            Code.DATA_UNREADABLE, f"The bundle's provider raised {type(error).__name__}: {str(error)[:300]}."
        ) from None
    if not isinstance(arrays, Mapping):
        raise PeerError(
            Code.INSTANCE_BAD_RESULT,
            f"The bundle's provider must return a dict of arrays, returned {type(arrays).__name__}.",
        )
    return arrays


def _function(path: Path) -> Any:  # noqa: ANN401  (the author's code)
    if not path.is_file():
        raise PeerError(Code.INSTANCE_FAILED, f"The bundle has no {PROVIDER_FILE}, but [data] kind is own.")
    spec = importlib.util.spec_from_file_location("fedless_bundle_provider", path)
    assert spec is not None  # noqa: S101  (true for every path that ends in .py)
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "load", None)
    if not callable(function):
        raise PeerError(
            Code.INSTANCE_FAILED, f"The bundle's {PROVIDER_FILE} has no function load(path, options)."
        )
    return function
