"""What is to go is found by its age, in each partition: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] == "root":
        _add_index("ix_operations_age", "operations", "partition_id", "created_at_us")
    else:
        _add_index("ix_instance_actions_finished", "instance_actions", "partition_id", "finished_at_us")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before does well with its indexes")


def _add_index(name: str, table: str, *columns: str) -> None:
    """Add what is missing: MariaDB commits each statement, so a run cut short is carried on by the next."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, list(columns))
