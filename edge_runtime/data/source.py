"""*Pure.* Where a client's data lies: the `[data]` table of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from fedless.protocol.errors import Code, LocalError

KINDS = ("npz", "idx", "csv", "parquet", "images", "own")
_SUFFIXES = {".npz": "npz", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True)
class DataSource:
    """One data source.

    `kind` is one of `KINDS` (left out: by the path's suffix; a path without one is a folder of images).
    `columns` says where the manifest's inputs and labels are found when their names differ: an array's name
    (npz), a file's name (idx), one column or a list of columns (csv, parquet). `classes` lists the names of
    classes in the order of their numbers, where the data has texts or folders instead of numbers. `options`
    go to the author's own provider.
    """

    kind: str
    path: str
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> DataSource:
        """The source that a table says. Raises `LocalError(CONFIG_INVALID)` with all mistakes."""
        complaints = [f"unknown key {key}" for key in sorted(values.keys() - cls.__dataclass_fields__.keys())]
        path, columns = values.get("path", ""), values.get("columns", {})
        classes, options = values.get("classes", ()), values.get("options", {})
        if not isinstance(path, str) or not path:
            complaints.append("path must be a text")
        kind = values.get("kind") or _SUFFIXES.get(PurePath(str(path)).suffix.lower(), "images")
        if kind not in KINDS:
            complaints.append(f"kind must be one of {', '.join(KINDS)}, is {kind!r}")
        if not isinstance(columns, Mapping) or not all(_texts(item) for item in columns.values()):
            complaints.append("columns must be a table of texts or arrays of texts")
            columns = {}
        if not _texts(classes):
            complaints.append("classes must be an array of texts")
        if not isinstance(options, Mapping):
            complaints.append("options must be a table")
        if complaints:
            raise LocalError(Code.CONFIG_INVALID, "[data]: " + "; ".join(complaints) + ".")
        named = {name: (item,) if isinstance(item, str) else tuple(item) for name, item in columns.items()}
        return cls(str(kind), str(path), named, tuple(classes), dict(options))  # type: ignore[arg-type,call-overload]

    def where(self, name: str) -> str:
        """The one array or file that holds `name`; its own name unless `columns` says otherwise."""
        return self.columns.get(name, (name,))[0]


def _texts(value: object) -> bool:
    """A text, or a list of texts."""
    if isinstance(value, str):
        return True
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
