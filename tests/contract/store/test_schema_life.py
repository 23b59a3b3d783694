"""Expand and contract, backports, and runs that are cut short: on every kind of database."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
import sqlalchemy as sa

from tests.contract.store.conftest import conductor, on_mariadb
from zcompute.db import migrate, online
from zcompute.db.errors import ContractRefused, DatabaseBusy, MigrationBlocks, SchemaMismatch
from zcompute.db.private import PrivateMariaDB
from zcompute.db.revisions import MIGRATIONS, Revisions, is_reserved
from zcompute.db.store import Store

EmptyUrl = Callable[[str], str]

COLUMN = 'add_column("instances", sa.Column("locked_by", ident(32), nullable=True))'
INDEX = 'create_index("ix_instances_locked", "instances", "locked_by")'


def release(place: Path, *revisions: tuple[str, str, str]) -> Path:
    """A release's migrations: this one's, and (number, the one before, steps) more."""
    shutil.copytree(MIGRATIONS, place, ignore=shutil.ignore_patterns("__pycache__"))
    for number, before, steps in revisions:
        folder = "contract" if number.startswith("c") else "versions"
        text = f'''
            """Revision {number}."""

            import sqlalchemy as sa

            from zcompute.db.columns import ident
            from alembic import op
            from zcompute.db.steps import *

            revision = "{number}"
            down_revision = {before!r}
            branch_labels = depends_on = None
            needs_level = "1"


            def upgrade():
                {steps}
            '''
        (place / folder / f"{number}_more.py").write_text(textwrap.dedent(text))
    return place


def head() -> str:
    return Revisions().expand_head


def columns(url: str, table: str) -> set[str]:
    with migrate.connected(url) as connection:
        return {column["name"] for column in sa.inspect(connection).get_columns(table)}


def indexes(url: str, table: str) -> set[str | None]:
    with migrate.connected(url) as connection:
        return {index["name"] for index in sa.inspect(connection).get_indexes(table)}


def run_sql(url: str, *statements: str) -> None:
    with migrate.connected(url) as connection, connection.begin():
        for statement in statements:
            connection.execute(sa.text(statement))


# -- backports --------------------------------------------------------------------------------------------------------


def test_a_backport_then_the_upgrade_past_it(empty_url: EmptyUrl, tmp_path: Path) -> None:
    """The newer release has the change under its own number, and was made before anybody thought of the backport."""
    url = empty_url("cell")
    backported = release(tmp_path / "old", ("0090", head(), COLUMN))
    first = ("0101", "0099", 'create_table("a", sa.Column("b", sa.Integer, primary_key=True))')
    newer = release(tmp_path / "new", first, ("0102", "0101", COLUMN), ("0103", "0102", INDEX))
    migrate.upgrade(url, "cell", "c1", place=backported)
    assert migrate.status(url, place=backported).current == "0090"
    assert "locked_by" in columns(url, "instances")
    found = migrate.status(url, place=newer)
    assert found.expand == (*(f"009{digit}" for digit in range(1, 10)), "0101", "0102", "0103")
    migrate.upgrade(url, "cell", "c1", place=newer)
    assert migrate.status(url, place=newer).current == "0103"
    assert "ix_instances_locked" in indexes(url, "instances")
    migrate.check(url, "cell", "c1", place=newer)


def test_a_database_without_the_backport_gets_the_change_by_its_own_number(empty_url: EmptyUrl, tmp_path: Path) -> None:
    url = empty_url("cell")
    migrate.upgrade(url, "cell", "c1")
    both = release(tmp_path / "new", ("0090", head(), COLUMN), ("0101", "0099", COLUMN))
    run_sql(url, "UPDATE alembic_version SET version_num = '0099' WHERE version_num NOT LIKE 'c%'")
    migrate.upgrade(url, "cell", "c1", place=both)  # it was past the number before that was used
    assert "locked_by" in columns(url, "instances")


def test_the_release_before_starts_on_what_the_next_has_expanded_and_no_other(
    empty_url: EmptyUrl, tmp_path: Path
) -> None:
    url = empty_url("cell")
    migrate.upgrade(url, "cell", "c1", place=release(tmp_path / "next", ("0101", "0099", COLUMN)))
    migrate.check(url, "cell", "c1")
    with pytest.raises(SchemaMismatch, match="newer release"):
        migrate.upgrade(url, "cell", "c1")
    run_sql(url, "UPDATE alembic_version SET version_num = '0201' WHERE version_num = '0101'")
    with pytest.raises(SchemaMismatch, match="0201, made by a newer release"):
        migrate.check(url, "cell", "c1")


def test_this_release_has_not_used_a_number_of_its_backports() -> None:
    names = [name for name in Revisions().pending([], contract=False) if is_reserved(name)]
    assert names == []


# -- contract ---------------------------------------------------------------------------------------------------------


def test_contract_waits_for_conductors_of_older_releases_and_says_so(
    empty_url: EmptyUrl, open_at: Callable[[str], Store], tmp_path: Path
) -> None:
    url = empty_url("root")
    store_place = release(tmp_path / "new", ("c0002", "c0001", 'drop_column("cells", "gone_soon")'))
    migrate.upgrade(url, "root", "root")
    run_sql(url, "ALTER TABLE cells ADD COLUMN gone_soon INTEGER NULL")
    store = open_at(url)
    store.register(conductor("con1"), 1)
    store.register(conductor("con2"), 1)
    run_sql(url, "DELETE FROM conductor_releases WHERE service_id = 'con2'")  # as older code registers
    with pytest.raises(ContractRefused, match="conductor con2 is of an older release and runs"):
        migrate.contract(url, "root", "root", place=store_place)
    store.release("con2-1")
    with pytest.raises(ContractRefused, match=r"con2 .* may come back"):
        migrate.contract(url, "root", "root", place=store_place)
    assert "gone_soon" in columns(url, "cells")
    migrate.upgrade(url, "root", "root", place=store_place)
    assert "gone_soon" in columns(url, "cells"), "an upgrade only expands where conductors were registered"
    migrate.contract(url, "root", "root", place=store_place, gone=["con2"])
    assert "gone_soon" not in columns(url, "cells")
    migrate.contract(url, "root", "root", place=store_place, gone=["con2"])
    with pytest.raises(SchemaMismatch, match="c0002"):
        migrate.check(url, "root", "root")


def test_contract_waits_for_the_release_level_and_for_expand(empty_url: EmptyUrl, tmp_path: Path) -> None:
    url = empty_url("cell")
    migrate.upgrade(url, "cell", "c1")
    run_sql(url, "UPDATE cell_state SET `release` = '0'",
            "INSERT INTO conductors VALUES ('x', 'x1', '', '', 0, 1)",
            "INSERT INTO conductor_releases VALUES ('x', 'x1', '0.2', '2')")  # fmt: skip
    place = release(tmp_path / "new", ("c0002", "c0001", "pass"))
    with pytest.raises(ContractRefused, match=r"release level is 0, c0002 needs 1: .*finalize"):
        migrate.contract(url, "cell", "c1", place=place)
    further = release(tmp_path / "further", ("0101", "0099", COLUMN), ("c0002", "c0001", "pass"))
    with pytest.raises(ContractRefused, match="--expand"):
        migrate.contract(url, "cell", "c1", place=further)


def test_a_conductor_of_an_older_release_that_took_a_service_over_counts_as_older(store: Store, tmp_path: Path) -> None:
    store.register(conductor("con1"), 1)
    place = release(tmp_path / "new", ("c0002", "c0001", "pass"))
    assert migrate.why_not_contract(store.url, place=place) == []
    run_sql(store.url, "UPDATE conductors SET incarnation = 'con1-2'")  # what older code does, beside lanes and beats
    assert migrate.why_not_contract(store.url, place=place) == ["conductor con1 is of an older release and runs"]


# -- cut short --------------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from zcompute.db import migrate
migrate.upgrade(sys.argv[1], "cell", "c1", place=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", [1, 3, 14, 24, 25])
def test_an_upgrade_killed_in_the_middle_is_carried_on(empty_url: EmptyUrl, tmp_path: Path, at: int) -> None:
    url = empty_url("cell")
    place = release(tmp_path / "new", ("0101", "0099", COLUMN), ("0102", "0101", INDEX))
    environment = {**os.environ, "ZCOMPUTE_FAILPOINTS": f"migrate.before_ddl=kill@{at}"}
    died = subprocess.run(
        [sys.executable, "-c", KILLED, url, str(place)], env=environment, timeout=60, check=False, capture_output=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    migrate.upgrade(url, "cell", "c1", place=place)
    assert migrate.status(url, place=place).expand == ()
    assert "ix_instances_locked" in indexes(url, "instances")


# -- a live cell ------------------------------------------------------------------------------------------------------


@on_mariadb
def test_a_change_that_would_lock_a_table_is_refused_with_the_reason(empty_url: EmptyUrl, tmp_path: Path) -> None:
    url = empty_url("cell")
    migrate.upgrade(url, "cell", "c1")
    steps = (
        'op.alter_column("instances", "progress", type_=sa.BigInteger(), existing_type=sa.Integer(), nullable=False)'
    )
    place = release(tmp_path / "new", ("0101", "0099", steps))
    with pytest.raises(MigrationBlocks, match=r"0101 cannot be made while the cell works.*--offline"):
        migrate.upgrade(url, "cell", "c1", place=place)
    migrate.upgrade(url, "cell", "c1", place=place, offline=True)
    assert migrate.status(url, place=place).current == "0101"


@on_mariadb
def test_a_transaction_that_holds_a_table_is_waited_for_in_bounded_steps(
    mariadb: PrivateMariaDB, empty_url: EmptyUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the upgrade waits, nobody waits behind it for longer than LOCK_WAIT_S."""
    monkeypatch.setattr(online, "LOCK_WAIT_S", 1)
    monkeypatch.setattr(online, "PAUSE_S", 0.1)
    url = empty_url("cell")
    migrate.upgrade(url, "cell", "c1")
    place = release(tmp_path / "new", ("0101", "0099", COLUMN))
    with migrate.connected(url) as holder:
        holder.execute(sa.text("SELECT * FROM instances")).all()
        monkeypatch.setattr(online, "TRIES_MAX", 2)
        with pytest.raises(DatabaseBusy, match="0101: a lock was not to be had in 2 tries of 1 s"):
            migrate.upgrade(url, "cell", "c1", place=place)
        monkeypatch.setattr(online, "TRIES_MAX", 15)
        upgrading = gevent.spawn(migrate.upgrade, url, "cell", "c1", place=place)
        gevent.sleep(0.3)
        assert not upgrading.ready()
        holder.rollback()
        upgrading.get(timeout=30)
    assert migrate.status(url, place=place).current == "0101"


@pytest.mark.parametrize(
    ("statement", "made"),
    [
        ("ALTER TABLE a ADD COLUMN b INT", "ALTER TABLE a ADD COLUMN b INT, ALGORITHM=INPLACE, LOCK=NONE"),
        ("CREATE UNIQUE INDEX i ON a (b)", "CREATE UNIQUE INDEX i ON a (b) ALGORITHM=INPLACE LOCK=NONE"),
        ("DROP INDEX i ON a", "DROP INDEX i ON a"),
        ("CREATE TABLE a (b INT)", "CREATE TABLE a (b INT)"),
        ("ALTER TABLE a DROP COLUMN b, ALGORITHM=INSTANT", "ALTER TABLE a DROP COLUMN b, ALGORITHM=INSTANT"),
    ],
)
def test_what_is_added_to_a_statement(statement: str, made: str) -> None:
    assert online.online_text(statement) == made
