"""Schemas: created, repeated, compared, refused."""

from collections.abc import Callable

import gevent
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tests.contract.store.conftest import on_mariadb
from zcompute.db import migrate, schema
from zcompute.db.errors import ConnectionLost, InvalidUrl, SchemaMismatch
from zcompute.db.private import PrivateMariaDB
from zcompute.db.store import Store
from zcompute.objects.partition import PARTITIONS


@pytest.mark.parametrize("kind", ["cell", "root"])
def test_the_migrations_make_the_schema_of_this_release(new_url: Callable[[str], str], kind: str) -> None:
    url = new_url(kind)
    with migrate.connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata_of(kind)) == []


def test_an_upgrade_repeated_changes_nothing(store: Store) -> None:
    migrate.upgrade(store.url, "cell", "c1")
    rows = store.read_map()
    assert (rows.cell, rows.term, rows.map_version, len(rows.partitions)) == ("c1", 1, 0, PARTITIONS)
    assert rows.release == schema.RELEASE_LEVEL


def test_an_upgrade_cut_short_is_carried_on(new_url: Callable[[str], str]) -> None:
    url = new_url("cell")
    with migrate.connected(url) as connection:
        for statement in (
            "DROP TABLE tasks",
            "DROP TABLE root_outbox",
            "DELETE FROM cell_state",
            "DELETE FROM partitions WHERE partition_id > 7",
            "DELETE FROM alembic_version",
        ):
            connection.execute(sa.text(statement))
        index = "DROP INDEX ix_claims_host" + (" ON claims" if url.startswith("mysql") else "")
        connection.execute(sa.text(index))
        connection.commit()
    migrate.upgrade(url, "cell", "c1")
    migrate.check(url, "cell", "c1")
    with migrate.connected(url) as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata_of("cell")) == []
        assert connection.scalar(sa.text("SELECT COUNT(*) FROM partitions")) == PARTITIONS


@on_mariadb
def test_upgrades_of_one_process_wait_for_one_another(mariadb: PrivateMariaDB, flavour: str) -> None:
    """Of different databases too: Alembic keeps its context in the process."""
    urls = [mariadb.create_database(f"beside{number}_{flavour.replace('-', '_')}") for number in range(3)]
    upgrading = [gevent.spawn(migrate.upgrade, url, "cell", f"c{at}") for at, url in enumerate(urls) for _ in range(2)]
    gevent.joinall(upgrading, timeout=60, raise_error=True)
    for at, url in enumerate(urls):
        migrate.check(url, "cell", f"c{at}")


def test_status_says_kind_cell_and_revision(new_url: Callable[[str], str]) -> None:
    found = migrate.status(new_url("root"))
    assert found.is_current
    assert (found.kind, found.cell, found.current) == ("root", "root", found.head)


def test_another_cell_kind_or_release_is_refused_in_one_sentence(new_url: Callable[[str], str]) -> None:
    url = new_url("cell")
    for kind, cell in (("cell", "c2"), ("root", "root")):
        with pytest.raises(SchemaMismatch, match="belongs to cell 'c1'"):
            migrate.check(url, kind, cell)
        with pytest.raises(SchemaMismatch, match="belongs to cell 'c1'"):
            migrate.upgrade(url, kind, cell)
    with migrate.connected(url) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999' WHERE version_num NOT LIKE 'c%'"))
        connection.commit()
    with pytest.raises(SchemaMismatch, match="newer release"):
        migrate.upgrade(url, "cell", "c1")
    with pytest.raises(SchemaMismatch, match="newer release"):
        migrate.check(url, "cell", "c1")


def test_an_empty_database_has_no_schema_yet(new_url: Callable[[str], str]) -> None:
    url = new_url("cell").replace(".db", "-none.db")
    if url.startswith("mysql"):
        with migrate.connected(url) as connection:
            for table in (*schema.metadata_of("cell").tables, "alembic_version"):
                connection.execute(sa.text(f"DROP TABLE {table}"))
    assert migrate.status(url).current is None
    with pytest.raises(SchemaMismatch, match="db init"):
        migrate.check(url, "cell", "c1")


@on_mariadb
def test_no_server_no_schema(flavour: str) -> None:
    with pytest.raises(ConnectionLost):
        migrate.status("mysql://u:p@127.0.0.1:19999/x")
    with pytest.raises(InvalidUrl):
        migrate.upgrade("mysql://u:p@127.0.0.1:19999/x", "zone", "c1")
