"""What resizes have raised of a project's usage, and the count that orders a cell's words of a server: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context

from zcompute.db.steps import add_column

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] != "root":
        return
    for name in ("decided", "raised_at_us"):
        add_column("usages", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its columns")
