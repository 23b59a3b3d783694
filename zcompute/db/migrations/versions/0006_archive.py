"""Archived rows, and deleted instances found by their age: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import blob, ident
from zcompute.db.steps import create_index, create_table

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_table(
        "archived_rows",
        sa.Column("partition_id", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("archived_at_us", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("source", ident(64), primary_key=True, autoincrement=False),
        sa.Column("row_key", ident(512), primary_key=True, autoincrement=False),
        sa.Column("body", blob(), nullable=False),
    )
    if context.config.attributes["kind"] == "cell":
        create_index("ix_instances_deleted", "instances", "partition_id", "deleted_at_us")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its tables")
