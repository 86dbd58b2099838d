"""Names of clients, for people."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the column; nobody has a name yet."""
    op.add_column("clients", sa.Column("name", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Drops the names."""
    op.drop_column("clients", "name")
