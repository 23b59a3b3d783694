"""States of cells, and who has enrolled: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import blob, ident
from zcompute.db.steps import add_column, create_table

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_table(
        "enrolments",
        sa.Column("id", ident(64), primary_key=True, autoincrement=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        sa.Column("token_key", ident(40), nullable=False),
        sa.Column("role", ident(32), nullable=False),
        sa.Column("cell", ident(64), nullable=False),
        sa.Column("hosts", blob(), nullable=False),
        sa.Column("uses_max", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", ident(255), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("enrolled", blob(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    if context.config.attributes["kind"] == "root":
        add_column("cells", sa.Column("draining", sa.Boolean(), nullable=False, server_default="0"))
        add_column("cells", sa.Column("deleted_at_us", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores what it adds")
