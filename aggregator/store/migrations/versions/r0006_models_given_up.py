"""Which versions of models were given up, and when: their blobs are erased."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Every version is kept so far."""
    op.add_column("models", sa.Column("erased_at_ms", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Forgets it; versions that were erased stay so, and are fetched in vain."""
    op.drop_column("models", "erased_at_ms")
