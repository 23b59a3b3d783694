"""Archive, purge and online data migrations of a whole region: by its conductors, while it works."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    boot_while,
    command,
    delete_all,
    started,
    wait_until,
)
from tests.cluster.test_faults import store_of
from tests.cluster.test_notifications import CONDUCTORS, kill_and_restart
from zcompute.cli.exits import MORE_LEFT
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.db import migrate
from zcompute.db.tables import ARCHIVED_ROWS, INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, INSTANCES
from zcompute.objects.base import pack

ROWS = 7


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, Shape(cells=("c1",), computes=1)) as region:
        yield region


def now() -> str:
    return datetime.now(UTC).isoformat()


def asked(region: Region, *words: str) -> tuple[int, dict]:  # type: ignore[type-arg]  # a JSON document
    done = command("db", *words, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode in (0, MORE_LEFT), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def test_deleted_servers_are_archived_in_bounded_steps_under_load_and_purged(region: Region) -> None:
    run = boot(region, 10)
    assert_all_active(run)
    uuids = [each.uuid for each in run.boots]
    delete_all(region, uuids[:6])
    before = now()
    rows = {}

    def archive(_: Booter) -> None:
        for step in range(100):
            code, document = asked(region, "archive", "--cell", "c1", "--before", before, "--max-rows", str(ROWS))
            for table, count in document["by_table"].items():
                rows[table] = rows.get(table, 0) + count
            assert document["rows"] <= ROWS + 10, "a server goes with its history"
            assert document["more"] is (code == MORE_LEFT)
            if step == 1:
                kill_and_restart(region, CONDUCTORS[0])
            if code == 0:
                return
        raise AssertionError("more is left for ever")

    assert_all_active(boot_while(region, 20, archive))
    assert rows["instances"] == 6
    with store_of(region, "c1") as store:
        wait_until(lambda: not store.fetch(INSTANCES, [(uuid,) for uuid in uuids[:6]]), "they are gone")
        assert len(store.fetch(INSTANCES, [(uuid,) for uuid in uuids])) == 4
        archived = store.scan(ARCHIVED_ROWS, limit=1000)
        counts = {table: sum(row.source == table for row in archived) for table in rows}
        assert counts == rows
        assert {row.columns()["uuid"] for row in archived if row.source == "instances"} == set(uuids[:6])
        for table in (INSTANCE_ACTIONS, INSTANCE_ACTION_EVENTS):
            assert store.scan(table, where={"instance_uuid": uuids[:6]}, limit=10) == []
        assert_audit_holds(region)

        dry, document = asked(region, "purge", "--cell", "c1", "--before", now(), "--dry-run")
        assert (dry, document["rows"]) == (0, len(archived))
        code, document = asked(region, "purge", "--cell", "c1", "--before", now(), "--max-rows", "3")
        assert (code, document["rows"]) == (MORE_LEFT, 3)
        code, document = asked(region, "purge", "--cell", "c1", "--before", now())
        assert (code, document["rows"]) == (0, len(archived) - 3)
        assert store.scan(ARCHIVED_ROWS, limit=10) == []


def test_stored_objects_are_brought_to_the_committed_level_with_progress(region: Region) -> None:
    run = boot(region, 3)
    assert_all_active(run)
    (uuid, other, _) = (each.uuid for each in run.boots)
    with store_of(region, "c1") as store, migrate.connected(region.database_url("c1")) as connection:
        row = store.fetch(INSTANCES, [(uuid,)])[(uuid,)]
        strange = pack(row.flavor, version=(1, 9))
        connection.execute(
            sa.text("UPDATE instances SET flavor = :flavor WHERE uuid IN (:one, :two)"),
            {"flavor": strange, "one": uuid, "two": other},
        )
        connection.commit()
        code, document = asked(region, "migrate-data", "--cell", "c1", "--max-rows", "1")
        found = {one["name"]: one for one in document["progress"]}["stored_at_level.instances"]
        assert (code, document["rows"], found["remaining"]) == (MORE_LEFT, 1, 1)
        code, document = asked(region, "migrate-data", "--cell", "c1")
        assert (code, document["rows"]) == (0, 1)
        code, document = asked(region, "migrate-data", "--cell", "c1")
        assert (code, document["rows"]) == (0, 0)
        stored = connection.execute(sa.text("SELECT flavor FROM instances WHERE uuid = :one"), {"one": uuid}).scalar()
        assert stored == pack(row.flavor)
    assert_audit_holds(region)


def test_bad_input_is_refused_in_a_sentence(region: Region) -> None:
    where = ("--state-dir", str(region.paths.state_dir))
    for words, expected in (
        (("--cell", "c1", "--before", "tomorrow"), "expected a date"),
        (("--cell", "c1", "--before", "2999-01-01"), "in the past"),
    ):
        done = command("db", "archive", *words, *where)
        assert done.returncode == 2
        assert expected in done.stderr
    done = command("db", "archive", "--cell", "c9", "--before", "2026-01-01", *where)
    assert done.returncode == 1
    assert "no conductor of cell c9" in done.stderr


def test_the_level_is_raised_once_everything_speaks_it(region: Region) -> None:
    where = ("--config", str(region.paths.config(CONDUCTORS[0])), "--state-dir", str(region.paths.state_dir))
    done = command("upgrade", "check", *where)
    assert (done.returncode, done.stdout) == (0, "everything is of this release\n")
    done = command("upgrade", "finalize", *where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as before" in done.stdout
    with migrate.connected(region.database_url("c1")) as connection:
        row = connection.execute(sa.text("SELECT * FROM conductor_releases LIMIT 1")).one()
        connection.execute(sa.text("DELETE FROM conductor_releases WHERE service_id = :id"), {"id": row.service_id})
        connection.commit()
        done = command("upgrade", "finalize", *where)
        assert done.returncode == 1
        assert f"conductor {row.service_id} does not speak level 1" in done.stdout
        connection.execute(sa.text("INSERT INTO conductor_releases VALUES (:a, :b, :c, :d)"),
                           dict(zip("abcd", row, strict=True)))  # fmt: skip
        connection.commit()
