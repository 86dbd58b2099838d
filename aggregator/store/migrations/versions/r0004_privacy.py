"""The privacy ledger, and the seeds of the aggregator's own noise."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds `privacy_ledger` and `noise_seeds`."""
    op.create_table(
        "privacy_ledger",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("spend", sa.Float(precision=53), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", "round_id", name="pk_privacy_ledger"),
    )
    op.create_index("ix_privacy_ledger_run_id", "privacy_ledger", ["run_id"])
    op.create_table(
        "noise_seeds",
        sa.Column("round_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("round_id", name="pk_noise_seeds"),
    )


def downgrade() -> None:
    """Drops them: what clients have spent is lost, so keep a back-up."""
    op.drop_table("noise_seeds")
    op.drop_index("ix_privacy_ledger_run_id", "privacy_ledger")
    op.drop_table("privacy_ledger")
