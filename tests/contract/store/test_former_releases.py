"""What every kept release does to a database goes on working on the newest expanded schema."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.store.test_schema_life import head, release
from tests.upgrade import former_schema
from zcompute import __version__
from zcompute.db import migrate, schema
from zcompute.db.errors import StoreError
from zcompute.db.revisions import MIGRATIONS
from zcompute.db.store import Store


def replay(store: Any, statements: list[former_schema.Statement]) -> None:
    """Run them all, each by itself."""
    for sql, values in statements:
        if sql.startswith("SELECT"):
            store._sessions.read(lambda session, sql=sql, values=values: session.select(sql, **values))
        else:
            store._sessions.write(lambda session, sql=sql, values=values: session.execute(sql, **values))


def expanded(url: str, kind: str, place: Path) -> None:
    """A database as it is before contract."""
    migrate.upgrade(url, kind, "root" if kind == "root" else "c1", place=place, contract_fresh=False)


@pytest.mark.parametrize("kind", ["cell", "root"])
@pytest.mark.parametrize("kept", former_schema.releases())
def test_a_former_release_works_on_the_expanded_schema(
    empty_url: Callable[[str], str], open_at: Callable[[str], Store], kind: str, kept: str
) -> None:
    url = empty_url(kind)
    expanded(url, kind, MIGRATIONS)
    replay(open_at(url), former_schema.read(kept, kind))


@pytest.mark.parametrize(
    "steps",
    [
        'op.add_column("hosts", sa.Column("more", sa.Integer, nullable=False))',
        'op.alter_column("hosts", "state", new_column_name="now", existing_type=ident(16), existing_nullable=False)',
        'drop_column("tasks", "request_id")',
        'drop_table("claims")',
    ],
)
def test_a_change_that_breaks_it_is_found(
    empty_url: Callable[[str], str], open_at: Callable[[str], Store], tmp_path: Path, steps: str
) -> None:
    url = empty_url("cell")
    try:
        expanded(url, "cell", release(tmp_path / "bad", ("0089", head(), steps)))
    except StoreError:
        return  # SQLite refuses it by itself
    with pytest.raises(StoreError):
        replay(open_at(url), former_schema.read(__version__, "cell"))


def test_this_release_is_kept() -> None:
    assert __version__ in former_schema.releases()


def test_a_table_that_keeps_deleted_rows_has_no_name_that_they_would_hold() -> None:
    """Else ``deleted`` belongs in the key: whoever deletes and creates again by the same name would be refused."""
    for table in schema.TABLES.values():
        keeps_deleted = any(column.startswith("deleted") for column in [each.name for each in table.columns])
        for index in table.indexes:
            if index.unique and keeps_deleted:
                assert any(str(column.name).startswith("deleted") for column in index.columns), (table.name, index.name)
