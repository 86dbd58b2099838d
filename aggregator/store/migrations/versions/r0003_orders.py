"""Functions on devices: pushed bundles, orders, answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from aggregator.store.schema import Json

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the three tables."""
    op.create_table(
        "bundles",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("given_up", sa.Boolean(), nullable=False),
        sa.Column("pushed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_bundles"),
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.LargeBinary(16), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("function", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("bundle_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("given_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_orders"),
        sa.UniqueConstraint("request_id", name="uq_orders_request_id"),
    )
    op.create_table(
        "order_answers",
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.String(64), nullable=False),
        sa.Column("nonce", sa.LargeBinary(16), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.String(8), nullable=False),
        sa.Column("timings_ms", Json, nullable=False),
        sa.Column("peak_rss_mb", sa.Float(), nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", "client_id", name="pk_order_answers"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.order_id"], name="fk_order_answers_order_id"),
    )


def downgrade() -> None:
    """Drops them, with what was answered."""
    for name in ("order_answers", "orders", "bundles"):
        op.drop_table(name)
