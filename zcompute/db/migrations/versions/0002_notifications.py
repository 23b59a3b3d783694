"""Numbered notifications, notifiers' cursors, instances' actions and their events: expand.

Frozen: later changes are later revisions.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

from zcompute.db.columns import TABLE_OPTIONS, blob, ident, sqlite_checks, text

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_shared()
    if context.config.attributes["kind"] != "root":
        _create_history()


def downgrade() -> None:
    raise NotImplementedError("an expand migration is not taken back: the release before ignores its tables")


def _create(name: str, *items: sa.Column[Any]) -> None:
    """Create what is missing: MariaDB commits each statement, so a run cut short is carried on by the next."""
    table = sa.Table(name, sa.MetaData(), *items, *sqlite_checks(name, items), **TABLE_OPTIONS)
    table.create(op.get_bind(), checkfirst=True)


def _key(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _need(name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _create_shared() -> None:
    _create(
        "notifications",
        _key("partition_id", sa.SmallInteger()),
        _key("n", sa.BigInteger()),
        _need("created_at_us", sa.BigInteger),
        _need("event_type", ident(64)),
        _need("instance_uuid", ident(36)),
        _need("body", blob()),
    )
    _create(
        "notifier_cursors",
        _key("partition_id", sa.SmallInteger()),
        _key("notifier", ident(64)),
        _need("n", sa.BigInteger),
        _need("updated_at_us", sa.BigInteger),
        _need("revision", sa.BigInteger),
    )


def _create_history() -> None:
    _create(
        "instance_actions",
        _key("instance_uuid", ident(36)),
        _key("operation_id", ident(255)),
        _need("partition_id", sa.SmallInteger),
        _need("action", ident(64)),
        _need("request_id", ident(64)),
        _need("user_id", ident(255)),
        _need("project_id", ident(255)),
        _need("started_at_us", sa.BigInteger),
        sa.Column("finished_at_us", sa.BigInteger, nullable=True),
        _need("result", ident(16)),
        _need("message", text(255)),
        _need("revision", sa.BigInteger),
    )
    _create(
        "instance_action_events",
        _key("instance_uuid", ident(36)),
        _key("operation_id", ident(255)),
        _key("task_id", ident(64)),
        _key("event", ident(64)),
        _key("attempt", sa.Integer()),
        _need("partition_id", sa.SmallInteger),
        _need("host", ident(255)),
        _need("started_at_us", sa.BigInteger),
        _need("finished_at_us", sa.BigInteger),
        _need("result", ident(16)),
        _need("message", text(255)),
    )
    _create(
        "usage_audits",
        _key("partition_id", sa.SmallInteger()),
        _need("period_at_us", sa.BigInteger),
        _need("after_uuid", ident(36)),
        _need("revision", sa.BigInteger),
    )
