"""Since when a server is shelved, by index, and the image that has its disk: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.columns import ident
from zcompute.db.steps import add_column, create_index

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] != "cell":
        return
    add_column("instances", sa.Column("shelved_at_us", sa.BigInteger(), nullable=True))
    add_column("instances", sa.Column("shelved_image_ref", ident(64), nullable=True))
    create_index("ix_instances_shelved", "instances", "partition_id", "shelved_at_us")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its columns")
