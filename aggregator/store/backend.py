"""What the store asks of a kind of database; `sqlite.py` and `postgresql.py` answer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection, Engine


class Backend(Protocol):
    """One database, reached through `engine` by one thread."""

    engine: Engine

    def changing_tables(self) -> AbstractContextManager[Connection]:
        """A transaction in which tables may be made, changed and dropped."""
        ...

    def snapshot(self) -> AbstractContextManager[Connection]:
        """A transaction that reads one moment and writes nothing; nobody waits for it."""
        ...

    def take_over(self, connection: Connection) -> None:
        """Writes down, once the tables are there, that this process works on the database from now on."""
        ...

    def own_error(self, error: BaseException) -> BaseException:
        """The `LocalError` that says what is wrong with the machine; other mistakes are bugs and stay so."""
        ...

    def may_pass(self, error: BaseException) -> bool:
        """Whether the same work may succeed on another connection: the server is away, or restarts."""
        ...

    def after_erasing(self) -> bool:
        """Removes old copies of what was erased from what is kept beside the tables; False: not yet, ask again."""
        ...

    def mark(self, connection: Connection) -> str | None:
        """A name for what the transaction has written, just before its end; None: nothing, or it needs none."""
        ...

    def has_committed(self, mark: str) -> bool:
        """Whether the transaction of that name was committed although its connection was lost."""
        ...
