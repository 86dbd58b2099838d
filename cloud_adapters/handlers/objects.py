"""A function's data: files in its package, or objects of a store named by URL, fetched once for each process.

`s3://`, `gs://`, `az://`, `https://` and `file://` go through obstore, with the credentials of the platform's own
identity (its instance role or service account): none are configured here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from edge_runtime.data.source import DataSource
from fedless.protocol.errors import Code, LocalError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_PACKAGE = Path(__file__).parents[2]


def local_sources(data: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, DataSource]:
    """The sources with paths on this machine; objects are in `folder` then. Raises `LocalError` DATA_*."""
    found = {}
    for name, table in data.items():
        source = DataSource.parse(table)
        path = _fetched(source.path, folder) if _URL.match(source.path) else _PACKAGE / source.path
        found[name] = replace(source, path=str(path.absolute()))
    return found


def _fetched(url: str, folder: Path) -> Path:
    place = urlsplit(url)
    target = folder / hashlib.sha256(url.encode()).hexdigest() / (PurePosixPath(place.path).name or "object")
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        import obstore  # noqa: PLC0415 - only functions with objects need it
        from obstore.store import from_url  # noqa: PLC0415

        parent, _, key = url.rpartition("/")
        with part.open("wb") as file:
            for chunk in obstore.get(from_url(parent), key):
                file.write(chunk)
    except ImportError as error:
        raise LocalError(
            Code.NOT_INSTALLED, "Data in an object store needs obstore.", fix="Install fedless[objects]."
        ) from error
    except Exception as error:  # obstore raises its own tree below Exception, and OSError for files
        part.unlink(missing_ok=True)
        code = Code.DATA_MISSING if "NotFound" in type(error).__name__ else Code.DATA_UNREADABLE
        raise LocalError(
            code,
            f"{place.scheme}://{place.netloc}{place.path}: {type(error).__name__}.",
            fix="Check the URL in the client's registration, and that the function's own identity may read it.",
        ) from error
    part.rename(target)
    return target
