"""Which release each conductor is of: expand.

Frozen: later changes are later revisions.
"""

import sqlalchemy as sa

from zcompute.db.columns import ident
from zcompute.db.steps import create_table

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_table(
        "conductor_releases",
        sa.Column("service_id", ident(255), primary_key=True, autoincrement=False),
        sa.Column("incarnation", ident(64), nullable=False),
        sa.Column("code_release", ident(32), nullable=False),
        sa.Column("code_level", ident(32), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its tables")
