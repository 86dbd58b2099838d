"""A round in pairwise mode may have several cohorts: what secure aggregation knows is kept for each of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds `masked_cohorts`, with what `masked_rounds` knew: rounds of one cohort."""
    op.create_table(
        "masked_cohorts",
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("round_id", "epoch", name="pk_masked_cohorts"),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name="fk_masked_cohorts_round_id"),
        sa.ForeignKeyConstraint(["epoch"], ["key_epochs.epoch"], name="fk_masked_cohorts_epoch"),
    )
    op.create_index("ix_masked_cohorts_epoch", "masked_cohorts", ["epoch"])
    op.execute(
        "INSERT INTO masked_cohorts (round_id, epoch, state) SELECT round_id, epoch, state FROM masked_rounds"
    )
    op.drop_table("masked_rounds")


def downgrade() -> None:
    """Keeps of each round the first cohort only, which is all that the earlier program understands."""
    op.create_table(
        "masked_rounds",
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("round_id", name="pk_masked_rounds"),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name="fk_masked_rounds_round_id"),
        sa.ForeignKeyConstraint(["epoch"], ["key_epochs.epoch"], name="fk_masked_rounds_epoch"),
    )
    op.create_index("ix_masked_rounds_epoch", "masked_rounds", ["epoch"])
    op.execute(
        "INSERT INTO masked_rounds (round_id, epoch, state) SELECT round_id, epoch, state FROM masked_cohorts AS mine"
        " WHERE epoch = (SELECT min(epoch) FROM masked_cohorts AS other WHERE other.round_id = mine.round_id)"
    )
    op.drop_table("masked_cohorts")
