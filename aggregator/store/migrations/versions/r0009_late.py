"""Clients that go over from a closed round to the next one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Adds `carried`."""
    op.create_table(
        "carried",
        sa.Column("ticket_round_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("client_id", sa.String(64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("ticket_round_id", "client_id", name="pk_carried"),
    )
    op.create_index("ix_carried_round_id", "carried", ["round_id"])


def downgrade() -> None:
    """Drops it: whoever is late then is too late."""
    op.drop_table("carried")
