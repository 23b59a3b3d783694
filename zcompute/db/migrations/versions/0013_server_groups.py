"""Server groups: their definitions at the root, the places of their members in cells: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import blob, ident, text
from zcompute.db.steps import add_column, create_index, create_table

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] == "cell":
        _placements()
    else:
        _definitions()


def _placements() -> None:
    create_table(
        "group_placements",
        sa.Column("group_uuid", ident(36), primary_key=True, autoincrement=False),
        sa.Column("instance_uuid", ident(36), primary_key=True, autoincrement=False),
        sa.Column("task_id", ident(64), primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        sa.Column("host", ident(255), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Index("ix_group_placements_partition", "partition_id"),
    )


def _definitions() -> None:
    create_table(
        "server_groups",
        sa.Column("uuid", ident(36), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        sa.Column("project_id", ident(255), nullable=False),
        sa.Column("user_id", ident(255), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("policy", ident(32), nullable=False),
        sa.Column("max_server_per_host", sa.Integer(), nullable=False),
        sa.Column("metadata", blob(), nullable=False),
        sa.Column("cell", ident(64), nullable=True),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Index("ix_server_groups_project", "project_id"),
        sa.Index("ix_server_groups_partition", "partition_id"),
    )
    add_column("instance_mappings", sa.Column("group_uuid", ident(36), nullable=True))
    create_index("ix_instance_mappings_group", "instance_mappings", "group_uuid")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its tables")
