"""The directory of images at the root, and what a cell says of those that it has made: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import blob, ident, text
from zcompute.db.steps import add_column, create_table

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] == "cell":
        add_column("root_outbox", sa.Column("image", blob(), nullable=True))
        return
    create_table(
        "images",
        sa.Column("id", ident(36), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        sa.Column("project_id", ident(255), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("user_id", ident(255), nullable=False),
        sa.Column("status", ident(16), nullable=False),
        sa.Column("visibility", ident(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("checksum", ident(128), nullable=False),
        sa.Column("min_disk_gb", sa.Integer(), nullable=False),
        sa.Column("min_ram_mb", sa.Integer(), nullable=False),
        sa.Column("properties", blob(), nullable=False),
        sa.Column("server_uuid", ident(36), nullable=False),
        sa.Column("operation_id", ident(255), nullable=False),
        sa.Column("reason", text(255), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at_us", sa.BigInteger(), nullable=True),
        sa.Column("deleted_by", ident(255), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Index("ix_images_project", "project_id", "id"),
        sa.Index("ix_images_visibility", "visibility", "id"),
        sa.Index("ix_images_status", "partition_id", "status"),
        sa.Index("ix_images_deleted", "partition_id", "deleted_at_us"),
    )


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its tables")
