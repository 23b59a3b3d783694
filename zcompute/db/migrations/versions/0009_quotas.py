"""Limits of projects, and of all that have none of their own: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import ident
from zcompute.db.steps import create_table

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _limits() -> tuple[sa.Column[int], ...]:
    return tuple(sa.Column(name, sa.BigInteger(), nullable=True) for name in ("instances", "cores", "ram_mb"))


def upgrade() -> None:
    if context.config.attributes["kind"] != "root":
        return
    create_table(
        "quotas",
        sa.Column("project_id", ident(255), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        *_limits(),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Index("ix_quotas_partition", "partition_id"),
    )
    create_table(
        "quota_classes",
        sa.Column("name", ident(64), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        *_limits(),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its tables")
