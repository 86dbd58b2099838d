"""Opens the helper's memory where the settings say that it is: a directory, PostgreSQL, or an object store."""

from __future__ import annotations

from pathlib import Path

from fedless.helper.remembering import Remembering
from fedless.protocol.errors import Code, LocalError

SCHEMES = ("postgresql", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss")


def open_memory(directory: Path | None, url: str, password: str = "") -> Remembering:
    """The memory at `url`, or in `directory` where that is empty. `password`: of PostgreSQL, if libpq does not find it.

    Raises `LocalError` or `PeerError(BUSY)`.
    """
    if url.startswith("postgresql://"):
        try:
            from fedless.helper.postgresql import PostgresqlMemory  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            detail = f"The helper's memory is PostgreSQL, and {error.name} is not installed."
            raise LocalError(Code.NOT_INSTALLED, detail, fix="Install fedless[postgresql].") from error
        return PostgresqlMemory(url, password)
    if url:
        from fedless.helper.objects import ObjectMemory  # noqa: PLC0415 - an extra

        return ObjectMemory(url)
    from fedless.helper.memory import Memory  # noqa: PLC0415 - fcntl and sqlite3, which a function has no use for

    if directory is None:
        raise ValueError("a directory or a URL")
    return Memory(directory)
