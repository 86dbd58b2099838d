"""The helper's memory in PostgreSQL, for functions of which several instances may be asked at once.

What must happen once is a primary key: of two transactions that insert it, the second waits for the first and finds it
there. A set is recorded in one transaction, in a fixed order, so that two of them never wait for each other. The URL
holds no password: it comes from the platform's secret, or libpq reads PGPASSWORD or PGPASSFILE.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    delete,
    event,
    exc,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from fedless.helper.remembering import Remembered, same_set
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.secagg.helper import Closed, Closing, RefusedReports, repeats

metadata = MetaData()
closed = Table(
    "helper_closed", metadata,
    Column("context", LargeBinary, primary_key=True), Column("set_digest", LargeBinary, nullable=False),
    Column("noise_seed", LargeBinary, nullable=False), Column("closed_at_ms", BigInteger, nullable=False),
)  # fmt: skip
seeds = Table("helper_seeds", metadata, Column("mark", LargeBinary, primary_key=True))
counted = Table(
    "helper_counted", metadata,
    Column("model", LargeBinary, primary_key=True), Column("client_id", Text, primary_key=True),
)  # fmt: skip
calls = Table(
    "helper_calls", metadata,
    Column("id", LargeBinary, primary_key=True), Column("expires_at_ms", BigInteger, nullable=False),
)  # fmt: skip
LOCK = 0x_FED1_8E1  # held while tables are made: any number, but the same for all versions
_ROWS = 1000
Rows = Sequence[dict[str, object]]
_SETTINGS = (
    "SET statement_timeout = 30000",
    "SET lock_timeout = 20000",
    "SET idle_in_transaction_session_timeout = 60000",
    # what was recorded survives a power cut, whatever the server's default
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
_ARGUMENTS = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3}
_RETRY_MS = 2_000


class PostgresqlMemory:
    """`Remembering` in a database that any number of instances share."""

    def __init__(self, url: str, password: str = "") -> None:
        """Open it, and make what tables are missing. Raises `LocalError` or `PeerError(BUSY)`."""
        if find_spec("psycopg") is None:
            raise LocalError(
                Code.NOT_INSTALLED, "The helper's memory is PostgreSQL, and psycopg is not installed.",
                fix="Install fedless[postgresql].",
            )  # fmt: skip
        where = make_url(url)
        if where.password:
            raise LocalError(
                Code.CONFIG_INVALID, "state.url holds a password.", fix="Leave it out, and set PGPASSWORD."
            )
        where = where.set(password=password or None)
        # no pool: an instance that is frozen between two calls must not hold a connection
        self._engine = create_engine(
            where.set(drivername="postgresql+psycopg"), poolclass=NullPool, connect_args=_ARGUMENTS,
            isolation_level="READ COMMITTED",
        )  # fmt: skip
        event.listen(self._engine, "connect", _set_up)
        with self._transaction() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            metadata.create_all(connection)

    def close(self) -> None:
        """Let go of connections."""
        self._engine.dispose()

    def remembered(self, context: bytes) -> Remembered | None:
        """See `Remembering`."""
        with self._transaction() as connection:
            return _remembered(connection, context)

    def record(self, closing: Closing, noise_seed: bytes, at_ms: int) -> Closed | RefusedReports:
        """See `Remembering`."""
        with self._transaction() as connection:
            row = {"context": closing.context, "set_digest": closing.set_digest, "noise_seed": noise_seed,
                   "closed_at_ms": at_ms}  # fmt: skip
            if not _new(connection, closed, [row]):
                known = _remembered(connection, closing.context)
                if known is None:  # the insertion met a row that nobody can have removed
                    raise LocalError(Code.STATE_CORRUPT, "A closed round is not there any more.")
                return same_set(known.closed, closing)
            marks: Rows = [{"mark": mark} for mark in sorted(closing.seed_marks)]
            names: Rows = [
                {"model": closing.model_mark, "client_id": name} for name in sorted(closing.client_ids)
            ]
            new_marks = {row[0] for row in _new(connection, seeds, marks)}
            new_names = {row[1] for row in _new(connection, counted, names)}
            used = frozenset(closing.seed_marks) - new_marks
            refused = repeats(closing, used, frozenset(closing.client_ids) - new_names)
            if refused is None:
                return Closed(closing.set_digest, noise_seed)
            connection.rollback()
            return refused

    def take_call(self, call_id: bytes, expires_at_ms: int, now_ms: int) -> bool:
        """See `Remembering`."""
        with self._transaction() as connection:
            connection.execute(delete(calls).where(calls.c.expires_at_ms < now_ms))
            return bool(_new(connection, calls, [{"id": call_id, "expires_at_ms": expires_at_ms}]))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Raises `PeerError(BUSY)` where the server is away, or ended the transaction: it may be tried again."""
        try:
            with self._engine.connect() as connection:
                yield connection
                connection.commit()
        except (exc.OperationalError, exc.InterfaceError) as error:
            said = str(error.orig).strip().splitlines()[:1]  # libpq's words: host and role, never a password
            detail = f"The helper's database cannot be used: {' '.join(said)[:200]}."
            raise PeerError(Code.BUSY, detail, retry_after_ms=_RETRY_MS) from error
        except exc.DBAPIError as error:
            detail = f"The helper's database refuses: {type(error.orig).__name__}."
            raise LocalError(Code.STATE_CORRUPT, detail, fix="See the database's log.") from error


def _set_up(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's class
    with connection.cursor() as cursor:
        for statement in _SETTINGS:
            cursor.execute(statement)
    connection.commit()


def _new(connection: Connection, table: Table, rows: Rows) -> list[Any]:
    """Insert rows; the keys of those that were not there."""
    found: list[Any] = []
    for part in _parts(rows):
        statement = insert(table).values(part).on_conflict_do_nothing().returning(*table.primary_key.columns)
        found += connection.execute(statement).all()
    return found


def _parts(rows: Rows) -> Iterable[Rows]:
    return (rows[at : at + _ROWS] for at in range(0, len(rows), _ROWS))


def _remembered(connection: Connection, context: bytes) -> Remembered | None:
    columns = (closed.c.set_digest, closed.c.noise_seed, closed.c.closed_at_ms)
    row = connection.execute(select(*columns).where(closed.c.context == context)).one_or_none()
    return None if row is None else Remembered(Closed(bytes(row[0]), bytes(row[1])), row[2])
