"""Lists of servers by name follow an index: expand.

Frozen: later changes are later revisions.
"""

from alembic import context

from zcompute.db.steps import create_index

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] == "cell":
        create_index("ix_instances_project_name", "instances", "project_id", "name", "uuid")
        create_index("ix_instances_name", "instances", "name", "uuid")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before does well with its indexes")
