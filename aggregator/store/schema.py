"""The tables of runs and rounds. All times are Unix milliseconds, all digests SHA-256 (32 bytes).

The tables of clients and certificates are in `fleet.py`, on the same `metadata`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

REVISIONS = Path(__file__).parent / "migrations" / "versions"
SCHEMA_VERSION = max(int(file.name[1:5]) for file in REVISIONS.glob("r[0-9][0-9][0-9][0-9]_*.py"))
"""The number of the newest revision: the tables of this package are of that version."""
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class _JsonText(TypeDecorator[Any]):
    """JSON as text with Python's NaN and Infinity: a loss may be one, and PostgreSQL's own JSON refuses them."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        return json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401, ARG002
        return json.loads(value)


Json = JSON().with_variant(_JsonText(), "postgresql")
"""Any JSON value, on every database: use it where SQLAlchemy's own `JSON` comes to mind."""
metadata = MetaData(naming_convention=NAMING)

# One row: who works on this database. A connection that was lost comes back only to the same generation.
owner = Table(
    "owner",
    metadata,
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
)

# One task, round after round. `settings` is the task file as text; `task` is what clients get, byte for byte.
runs = Table(
    "runs",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("task_name", String(64), nullable=False),
    Column("settings", Text, nullable=False),
    Column("task", LargeBinary, nullable=False),
    Column("bundle_digest", LargeBinary(32), nullable=False),
    Column("test_set_digest", LargeBinary(32), nullable=False),  # empty: no central evaluation
    Column("state", String(16), nullable=False),  # a `RunState`
    Column("reason", Text, nullable=False, default=""),  # why it ended, or what it waits for
    Column("rounds_wanted", Integer, nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger, nullable=False, default=0),
)

# Immutable weights; version 0 is what the run started from, n+1 comes from a round of version n.
models = Table(
    "models",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("round_id", BigInteger, nullable=False),  # 0: the initial model
    Column("created_at_ms", BigInteger, nullable=False),
    Column(
        "erased_at_ms", BigInteger, nullable=False, default=0
    ),  # given up (`retention`); 0: its blob stays
)

# What a strategy keeps beside a version (momentum and the like); version 0 has none, its state is the strategy's own.
model_state = Table(
    "model_state",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),  # of raw float32, little-endian
    ForeignKeyConstraint(["run_id", "version"], ["models.run_id", "models.version"]),
)

# One pass from selection to a new model, or abandonment. `terms` is what was fixed when it opened.
rounds = Table(
    "rounds",
    metadata,
    Column("round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("run_id", ForeignKey("runs.run_id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("model_version", Integer, nullable=False),  # what its clients start from
    Column("terms", Json, nullable=False),
    Column("phase", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False, default=""),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("grace_until_ms", BigInteger, nullable=False, default=0),
    Column("ended_at_ms", BigInteger, nullable=False, default=0),
    Column("metrics", Json, nullable=False, default=dict),
    Column("phases_ms", Json, nullable=False, default=dict),
)

# Who was selected for a round, and all that became of it: the announced report, and what the invocation cost.
cohort = Table(
    "cohort",
    metadata,
    Column("round_id", ForeignKey("rounds.round_id"), primary_key=True),
    Column("client_id", String(64), primary_key=True),
    Column("nonce", LargeBinary(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("checked_in_at_ms", BigInteger, nullable=False, default=0),
    Column("settled_at_ms", BigInteger, nullable=False, default=0),  # reported or lost
    Column("loss", String(32), nullable=False, default=""),  # why it does not count
    Column("encoding", Integer, nullable=False, default=0),
    Column("length_bytes", BigInteger, nullable=False, default=0),
    Column("sha256", LargeBinary(32), nullable=False, default=b""),
    Column("examples", BigInteger, nullable=False, default=0),
    Column("sums", Json, nullable=False, default=dict),
    Column("masked", LargeBinary, nullable=False, default=b""),  # the signed head of a masked report
    Column("bytes_down", BigInteger, nullable=False, default=0),
    Column("bytes_up", BigInteger, nullable=False, default=0),
    Column("invocation", Json, nullable=False, default=dict),
    Index("ix_cohort_client_id", "client_id"),
)

# Where a client's ticket of an earlier round counts now: it is late, and that round has taken it over.
carried = Table(
    "carried",
    metadata,
    Column("ticket_round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("client_id", String(64), primary_key=True),
    Column("round_id", BigInteger, nullable=False, index=True),
    Column("model_version", Integer, nullable=False),  # what the ticket names
    Column("until_ms", BigInteger, nullable=False),  # until when the ticket is good
)

# Everything that happened in a run, in order; never changed, never erased with the run's life.
events = Table(
    "events",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("at_ms", BigInteger, nullable=False),
    Column("event", String(64), nullable=False),
    Column("round_id", BigInteger, nullable=False, default=0),
    Column("client_id", String(64), nullable=False, default=""),
    Column("fields", Json, nullable=False, default=dict),
)

# How often something happened to a client: refusals by code, and accepted reports as "reports".
counters = Table(
    "counters",
    metadata,
    Column("client_id", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
)
