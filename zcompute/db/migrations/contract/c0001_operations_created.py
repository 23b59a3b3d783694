"""The index of operations by age alone: contract.

What is to go is found in its partition since 0004. Frozen: later changes are later revisions.
"""

from alembic import context

from zcompute.db.steps import drop_index

revision = "c0001"
down_revision = None
branch_labels = None
depends_on = None
needs_level = "1"


def upgrade() -> None:
    if context.config.attributes["kind"] == "root":
        drop_index("ix_operations_created", "operations")


def downgrade() -> None:
    raise NotImplementedError("a contract migration is not taken back: restore a backup")
