"""Since when a move waits to be confirmed, by index: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.steps import add_column, create_index

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] != "cell":
        return
    add_column("instances", sa.Column("resized_at_us", sa.BigInteger(), nullable=True))
    create_index("ix_instances_resized", "instances", "partition_id", "resized_at_us")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its columns")
