"""The order of a cell's registrations at the root: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if context.config.attributes["kind"] == "root":
        _add_to_cells("term")
        _add_to_cells("map_version")


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its columns")


def _add_to_cells(name: str) -> None:
    """Add what is missing: MariaDB commits each statement, so a run cut short is carried on by the next."""
    if name not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("cells")}:
        op.add_column("cells", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
