"""Moves of servers to other cells: the root's tasks, and what a cell's row is meanwhile: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import blob, ident
from zcompute.db.steps import add_column, create_table

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] == "cell":
        add_column("instances", sa.Column("crossing", ident(16), nullable=False, server_default=""))
    if context.config.attributes["kind"] != "root":
        return
    create_table(
        "cross_moves",
        sa.Column("uuid", ident(36), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        sa.Column("project_id", ident(255), nullable=False),
        sa.Column("operation_id", ident(64), nullable=False),
        sa.Column("source_cell", ident(64), nullable=False),
        sa.Column("target_cell", ident(64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("step", ident(32), nullable=False),
        sa.Column("state", ident(16), nullable=False),
        sa.Column("deadline_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_us", sa.BigInteger(), nullable=True),
        sa.Column("body", blob(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Index("ix_cross_moves_partition", "partition_id", "state"),
        sa.Index("ix_cross_moves_ended", "partition_id", "ended_at_us"),
    )


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its table and column")
