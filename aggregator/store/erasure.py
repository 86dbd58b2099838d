"""Secrets that a step erased: their old pages are to go from what the database keeps beside its tables as well.

A step says so on its connection; the engine, after the commit, has the backend do what it can.
"""

from __future__ import annotations

from sqlalchemy import Connection

_ERASED = "fedless_erased"


def note(connection: Connection) -> None:
    """This transaction overwrites or deletes a secret."""
    connection.info[_ERASED] = True


def take(connection: Connection) -> bool:
    """Whether any step did since the last time."""
    return bool(connection.info.pop(_ERASED, False))
