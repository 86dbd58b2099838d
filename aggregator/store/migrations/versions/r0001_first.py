"""The tables as they were when schema versions began: a copy of that day, which is never changed.

`schema_version` was the version then; databases with it, and without Alembic's table, are of this revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from aggregator.store.schema import NAMING, Json

revision = "0001"
down_revision = None

first = sa.MetaData(naming_convention=NAMING)

sa.Table(
    "alarms",
    first,
    sa.Column("at_ms", sa.BigInteger(), nullable=False),
    sa.Column("what", sa.String(64), nullable=False),
    sa.Column("client_id", sa.String(64), nullable=False),
    sa.Column("source", sa.String(128), nullable=False),
    sa.Index("ix_alarms_at_ms", "at_ms"),
)
sa.Table(
    "clients",
    first,
    sa.Column("client_id", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("labels", Json, nullable=False),
    sa.Column("enrolled_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("last_seen_ms", sa.BigInteger(), nullable=False),
    sa.Column("online", sa.Boolean(), nullable=False),
    sa.Column("not_before_ms", sa.BigInteger(), nullable=False),
    sa.Column("not_before_reason", sa.Text(), nullable=False),
    sa.Column("profile", Json, nullable=False),
    sa.Column("revoked_reason", sa.Text(), nullable=False),
)
sa.Table(
    "counters",
    first,
    sa.Column("client_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("count", sa.BigInteger(), nullable=False),
    sa.Column("last_at_ms", sa.BigInteger(), nullable=False),
)
sa.Table(
    "runs",
    first,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("task_name", sa.String(64), nullable=False),
    sa.Column("settings", sa.Text(), nullable=False),
    sa.Column("task", sa.LargeBinary(), nullable=False),
    sa.Column("bundle_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("test_set_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("rounds_wanted", sa.Integer(), nullable=False),
    sa.Column("started_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger(), nullable=False),
)
sa.Table(
    "schema_version",
    first,
    sa.Column("version", sa.Integer(), nullable=False),
)
sa.Table(
    "certificates",
    first,
    sa.Column("serial", sa.String(48), primary_key=True),
    sa.Column("client_id", sa.ForeignKey("clients.client_id"), nullable=False, index=True),
    sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger(), nullable=False),
)
sa.Table(
    "claims",
    first,
    sa.Column("secret_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("client_id", sa.ForeignKey("clients.client_id"), nullable=False, index=True),
    sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("used_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("public_key", sa.LargeBinary(), nullable=False),
    sa.Column("leaf_der", sa.LargeBinary(), nullable=False),
)
sa.Table(
    "events",
    first,
    sa.Column("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger(), nullable=False),
    sa.Column("event", sa.String(64), nullable=False),
    sa.Column("round_id", sa.BigInteger(), nullable=False),
    sa.Column("client_id", sa.String(64), nullable=False),
    sa.Column("fields", Json, nullable=False),
)
sa.Table(
    "functions",
    first,
    sa.Column("client_id", sa.ForeignKey("clients.client_id"), primary_key=True),
    sa.Column("platform", sa.String(32), nullable=False),
    sa.Column("settings", Json, nullable=False),
    sa.Column("added_at_ms", sa.BigInteger(), nullable=False),
)
sa.Table(
    "key_epochs",
    first,
    sa.Column("epoch", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.ForeignKey("runs.run_id"), nullable=False, index=True),
    sa.Column("cohort", Json, nullable=False),
    sa.Column("minimum", sa.Integer(), nullable=False),
    sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("keys_until_ms", sa.BigInteger(), nullable=False),
    sa.Column("shares_until_ms", sa.BigInteger(), nullable=False),
    sa.Column("state", sa.LargeBinary(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger(), nullable=False),
)
sa.Table(
    "models",
    first,
    sa.Column("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("version", sa.Integer(), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("round_id", sa.BigInteger(), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
)
sa.Table(
    "rounds",
    first,
    sa.Column("round_id", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.ForeignKey("runs.run_id"), nullable=False, index=True),
    sa.Column("number", sa.Integer(), nullable=False),
    sa.Column("kind", sa.Integer(), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("model_version", sa.Integer(), nullable=False),
    sa.Column("terms", Json, nullable=False),
    sa.Column("phase", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("grace_until_ms", sa.BigInteger(), nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("phases_ms", Json, nullable=False),
)
sa.Table(
    "cohort",
    first,
    sa.Column("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    sa.Column("client_id", sa.String(64), primary_key=True),
    sa.Column("nonce", sa.LargeBinary(16), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("checked_in_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("settled_at_ms", sa.BigInteger(), nullable=False),
    sa.Column("loss", sa.String(32), nullable=False),
    sa.Column("encoding", sa.Integer(), nullable=False),
    sa.Column("length_bytes", sa.BigInteger(), nullable=False),
    sa.Column("sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("examples", sa.BigInteger(), nullable=False),
    sa.Column("sums", Json, nullable=False),
    sa.Column("masked", sa.LargeBinary(), nullable=False),
    sa.Column("bytes_down", sa.BigInteger(), nullable=False),
    sa.Column("bytes_up", sa.BigInteger(), nullable=False),
    sa.Column("invocation", Json, nullable=False),
    sa.Index("ix_cohort_client_id", "client_id"),
)
sa.Table(
    "epoch_shares",
    first,
    sa.Column("epoch", sa.ForeignKey("key_epochs.epoch"), primary_key=True),
    sa.Column("member", sa.Integer(), primary_key=True),
    sa.Column("shares", sa.LargeBinary(), nullable=False),
)
sa.Table(
    "helper_rounds",
    first,
    sa.Column("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    sa.Column("opened", sa.LargeBinary(), nullable=False),
    sa.Column("refused", Json, nullable=False),
)
sa.Table(
    "masked_rounds",
    first,
    sa.Column("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    sa.Column("epoch", sa.ForeignKey("key_epochs.epoch"), nullable=False, index=True),
    sa.Column("state", sa.LargeBinary(), nullable=False),
)
sa.Table(
    "model_state",
    first,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer(), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.ForeignKeyConstraint(["run_id", "version"], ["models.run_id", "models.version"]),
)


def upgrade() -> None:
    """Makes all tables."""
    first.create_all(op.get_bind())


def downgrade() -> None:
    """Drops all tables."""
    first.drop_all(op.get_bind())
