"""Which model each channel serves, and served."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds `promotions`."""
    op.create_table(
        "promotions",
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "version"], ["models.run_id", "models.version"], name="fk_promotions_run_id"
        ),
        sa.PrimaryKeyConstraint("channel", "sequence", name="pk_promotions"),
    )


def downgrade() -> None:
    """Drops it: channels are forgotten, models stay."""
    op.drop_table("promotions")
