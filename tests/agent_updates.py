"""Updates of the agent for tests: this very code as a wheel, whole or spoilt."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_runtime.update import _version
from fedless.image import runtime
from fedless.image.update import pins
from fedless.protocol import update as container
from fedless.protocol.update import ANY, File, Update
from tests.edge_fleet import PUBLISHER_KEY


def wheel(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def pack(wheels: Mapping[str, bytes], sequence: int = 1, key: bytes = PUBLISHER_KEY, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "version": f"9.{sequence}", "sequence": sequence, "python": "", "machine": ANY, "needs": {},
        "files": tuple(
            File(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in wheels.items()
        ),
    }  # fmt: skip
    return container.pack_head(Update(**values | changes), key) + b"".join(wheels.values())


def agent(
    folder: Path, sequence: int, spoil: Callable[[Path], None] = lambda _: None, key: bytes = PUBLISHER_KEY
) -> bytes:
    """An update with this code; `spoil` changes the tree before it is signed."""
    tree = folder / f"tree-{sequence}"
    runtime.code(tree)
    spoil(tree)
    files = {str(path.relative_to(tree)): path.read_bytes() for path in runtime.walk(tree) if path.is_file()}
    needs = {name: _version(name) for name in pins() if _version(name) != "none"}
    return pack({"fedless-9-py3-none-any.whl": wheel(files)}, sequence, key, needs=needs)
