"""Locks and soft deletes of instances, and what a finished move can go back to: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import blob, text
from zcompute.db.steps import add_column, create_index

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] != "cell":
        return
    add_column("instances", sa.Column("locked", sa.Boolean(), nullable=False, server_default="0"))
    add_column("instances", sa.Column("locked_by_admin", sa.Boolean(), nullable=False, server_default="0"))
    add_column("instances", sa.Column("locked_reason", text(255), nullable=True))
    add_column("instances", sa.Column("soft_deleted_at_us", sa.BigInteger(), nullable=True))
    create_index("ix_instances_soft_deleted", "instances", "partition_id", "soft_deleted_at_us")
    add_column("instances", sa.Column("move", blob(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its columns")
