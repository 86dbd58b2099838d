"""Who works on this database (PostgreSQL: another process may take it over); Alembic's table says the version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds `owner`; drops the table that said the version before."""
    op.create_table(
        "owner",
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("place", name="pk_owner"),
    )
    op.drop_table("schema_version")


def downgrade() -> None:
    """Puts the earlier table back, which says 1."""
    version = op.create_table("schema_version", sa.Column("version", sa.Integer(), nullable=False))
    op.bulk_insert(version, [{"version": 1}])
    op.drop_table("owner")
