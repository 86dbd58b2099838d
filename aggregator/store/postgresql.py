"""PostgreSQL: the database of an aggregator whose state is not on its own disk. Version 13 or later, by psycopg.

One aggregator works on a database at a time: the connection that writes holds an advisory lock, so whoever lost the
connection has lost the lock. It comes back only if nobody worked on the database meanwhile (`owner.generation`), since
what it holds in memory would be older than the database.

A transaction whose end was cut off is looked up by its id (`pg_xact_status`) before its work is done again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, create_engine, event, exc, insert, select, text, update

from aggregator.store.schema import owner
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    import psycopg

LOCK = 0x_FED1_E55  # of this database; any number, but the same for all versions
CONNECT_S = 5
ARGUMENTS: dict[str, Any] = {  # a server that is gone is noticed within 20 s, whatever the network says
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
SETTINGS = (
    "SET statement_timeout = 60000",
    "SET lock_timeout = 30000",
    "SET idle_in_transaction_session_timeout = 120000",
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 3",
    "SET tcp_keepalives_count = 3",
    # a committed step survives a power cut, whatever the server's default
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
# SQLSTATE, or its first characters: connection lost, shut down, starting up, too many clients, serialisation, deadlock.
PASSING = ("08", "57P", "53300", "40001", "40P01")
FULL = ("53100", "53200")  # disk, memory
NEVER = ("password", "authentication", "pg_hba.conf", "does not exist", "permission denied")


class HeldError(LocalError):
    """Another process works on the database; it may be about to end."""


class Postgresql:
    """A server's database, for the one process that holds it, or for one that looks (`sole=False`)."""

    def __init__(self, url: URL, *, sole: bool) -> None:
        if find_spec("psycopg") is None:
            raise LocalError(
                Code.CONFIG_INVALID, "The database is PostgreSQL, and psycopg is not installed.",
                fix="Install fedless[postgresql].",
            )  # fmt: skip
        self._sole = sole
        self._generation = 0
        self.name = f"fedless on {socket.gethostname()[:32]}, process {os.getpid()}"
        arguments = {**ARGUMENTS, "application_name": self.name}
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0, connect_args=arguments
        )
        event.listen(self.engine, "connect", self._set_up)

    @contextmanager
    def changing_tables(self) -> Iterator[Connection]:
        """A transaction, in which a statement may take its time."""
        with self.engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """See `Backend`. What it reads stays in the tables until it ends: autovacuum waits for it."""
        with self.engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                connection.execute(text("SET LOCAL statement_timeout = 600000"))
                yield connection

    def take_over(self, connection: Connection) -> None:
        """Begins a new generation: whoever held the database before will not write to it again."""
        last = connection.scalar(select(owner.c.generation).where(owner.c.place == 1))
        values = {"generation": (last or 0) + 1, "name": self.name}
        if last is None:
            connection.execute(insert(owner).values(place=1, **values))
        else:
            connection.execute(update(owner).values(values))
        self._generation = (last or 0) + 1

    def own_error(self, error: BaseException) -> BaseException:
        """See `Backend`."""
        if not isinstance(error, exc.DBAPIError):
            return error
        state = _state(error)
        if state.startswith(FULL):
            return LocalError(
                Code.DISK_FULL, f"PostgreSQL has no space left: {_first_line(error)}.",
                fix="Free space on the database server.",
            )  # fmt: skip
        if self.may_pass(error) or _is_connecting(error):
            return LocalError(
                Code.STORE_UNREACHABLE, f"PostgreSQL cannot be used: {_first_line(error)}.",
                fix="Start it, or check state.database and its password.",
            )  # fmt: skip
        return error

    def may_pass(self, error: BaseException) -> bool:
        """Whether the server is away, restarts, or asks to try again; a wrong password does not pass."""
        if isinstance(error, HeldError):
            return True
        if not isinstance(error, exc.DBAPIError):
            return False
        if error.connection_invalidated or _state(error).startswith(PASSING):
            return True
        return _is_connecting(error) and not any(word in str(error.orig) for word in NEVER)

    def after_erasing(self) -> bool:
        """Nothing: old row versions go with autovacuum, their bytes and the log when they are overwritten."""
        return True

    def mark(self, connection: Connection) -> str | None:
        """The transaction's id, if it wrote anything."""
        found: str | None = connection.scalar(text("SELECT pg_current_xact_id_if_assigned()::text"))
        return found

    def has_committed(self, mark: str) -> bool:
        """What the server knows of that transaction; the lock, which is ours again, says that it has ended."""
        with self.engine.begin() as connection:
            status = connection.scalar(text("SELECT pg_xact_status(CAST(:id AS xid8))"), {"id": mark})
        return bool(status == "committed")

    def _set_up(self, connection: psycopg.Connection[Any], _record: object) -> None:
        """Of each new connection: its settings, and the lock."""
        connection.autocommit = True
        try:
            for setting in SETTINGS:
                connection.execute(setting)
            if self._sole:
                self._lock(connection)
            connection.autocommit = False
        except BaseException:
            connection.close()  # the pool would not
            raise

    def _lock(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
        if not row or not row[0]:
            holder = connection.execute(
                "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
                " WHERE locktype = 'advisory' AND objid = %s AND granted", (LOCK,),
            ).fetchone()  # fmt: skip
            name = (holder and holder[0]) or "Another process"
            raise HeldError(Code.STATE_LOCKED, f"{name} works on this database.", fix="Stop it first.")
        if self._generation:
            found = connection.execute("SELECT generation, name FROM owner WHERE place = 1").fetchone()
            if found is None or found[0] != self._generation:
                name = found[1] if found else "somebody"
                raise LocalError(
                    Code.STATE_LOCKED, f"The connection was lost, and {name} took the database over.",
                    fix="Start one aggregator again.",
                )  # fmt: skip


def _state(error: exc.DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _is_connecting(error: exc.DBAPIError) -> bool:
    """Whether it says no before there is a connection: libpq gives no SQLSTATE then."""
    return isinstance(error, exc.OperationalError) and not _state(error)


def _first_line(error: exc.DBAPIError) -> str:
    """What the server or libpq says, which names host and user, and no password."""
    return str(error.orig).strip().partition("\n")[0].rstrip(".")[:300]
