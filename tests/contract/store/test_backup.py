"""A backup is of one moment and checked; a restore begins a new history in an empty database."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance
from zcompute.db import backup, migrate
from zcompute.db.batch import Numbering
from zcompute.db.errors import BackupInvalid, RestoreRefused, SchemaMismatch
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES, NOTIFICATIONS
from zcompute.objects.epochs import history_of, in_history
from zcompute.objects.notification import StoredNotification

Url = Callable[[str], str]
Open = Callable[[str], Store]
NOW_S = 1_800_000_000.0


@pytest.fixture
def filled(new_url: Url, open_at: Open) -> Store:
    """A cell with more rows than a page."""
    store = open_at(new_url("cell"))
    lane = LaneWriter.register(store, conductor())
    store.take_over([], [lane.lane_id], 1)
    rows = [instance(generation=3, command_generation=4) for _ in range(backup.PAGE_ROWS + 5)]
    lane.commit(insert(INSTANCES, *rows))
    told = [
        StoredNotification(partition_id=7, n=n, created_at_us=1, event_type="e", instance_uuid="", body=b"b")
        for n in (1, 2)
    ]
    batch = lane.batch(insert(NOTIFICATIONS, *told))
    batch.numberings.append(Numbering(7, 0, 2))
    lane.send(batch)
    lane.connection.close()
    return store


def test_what_is_restored_is_what_was_there_in_a_new_history(
    filled: Store, empty_url: Url, open_at: Open, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    rows = backup.backup(filled.url, "cell", "c1", file)
    assert rows["instances"] == backup.PAGE_ROWS + 5
    url = empty_url("cell")
    done = backup.restore(url, "cell", "c1", file, now_s=NOW_S)
    assert (done.rows, done.history) == (rows, int(NOW_S // 60))
    restored = open_at(url)
    before, after = filled.read_map(), restored.read_map()
    assert (after.lanes, after.conductors) == ({}, {})
    assert after.term == in_history(before.term, done.history)
    assert after.map_version == in_history(before.map_version, done.history)
    assert len(after.ownerless()) == 256
    for row in restored.scan(INSTANCES, limit=3000):
        assert (row.generation, row.command_generation) == (in_history(3, done.history), in_history(4, done.history))
    told = {row.partition_id: row for row in restored.read_told()}[7]
    assert (told.kept, told.last - told.first + 1, told.last) == (2, 2, told.last_n)
    assert history_of(told.last_n) == done.history
    migrate.check(url, "cell", "c1")
    assert restored.register(conductor(), 1), "a conductor begins there"


def test_the_same_backup_restored_again_is_above_the_restore_before(
    filled: Store, empty_url: Url, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    backup.backup(filled.url, "cell", "c1", file)
    first = backup.restore(empty_url("cell"), "cell", "c1", file, now_s=NOW_S)
    second = backup.restore(empty_url("cell"), "cell", "c1", file, now_s=NOW_S + 60)
    assert second.history > first.history
    assert backup.next_history(second.history, NOW_S) == second.history + 1, "a wrong clock never goes back"


def test_a_database_in_use_or_of_another_cell_is_refused(
    filled: Store, empty_url: Url, open_at: Open, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    backup.backup(filled.url, "cell", "c1", file)
    with pytest.raises(RestoreRefused, match="has been a cell's"):
        backup.restore(filled.url, "cell", "c1", file)
    with pytest.raises(RestoreRefused, match="a backup of cell c1, expected cell c2"):
        backup.restore(empty_url("cell"), "cell", "c2", file)
    with pytest.raises(SchemaMismatch, match="found that of cell c1"):
        backup.backup(filled.url, "cell", "c2", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_damaged_backup_touches_nothing(filled: Store, empty_url: Url, tmp_path: Path) -> None:
    file = tmp_path / "b"
    backup.backup(filled.url, "cell", "c1", file)
    data = file.read_bytes()
    url = empty_url("cell")
    for damaged, why in (
        (data[:-9], "cut short"),
        (data[: len(data) // 2], "cut short"),
        (data[:500] + bytes([data[500] ^ 1]) + data[501:], "damaged"),
        (b"x" * 100, "no backup"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(BackupInvalid, match=why):
            backup.restore(url, "cell", "c1", file)
    assert migrate.status(url).current is None


def test_a_restore_cut_short_is_no_cell_and_is_begun_anew(
    filled: Store, empty_url: Url, open_at: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b"
    rows = backup.backup(filled.url, "cell", "c1", file)
    url = empty_url("cell")
    inserted = backup._insert
    calls = iter(range(100))

    def broken(connection: sa.Connection, page: object) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        inserted(connection, page)  # type: ignore[arg-type]  # a Page

    monkeypatch.setattr(backup, "_insert", broken)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(url, "cell", "c1", file)
    with pytest.raises(SchemaMismatch, match="restoring"):
        migrate.check(url, "cell", "c1")
    monkeypatch.undo()
    assert backup.restore(url, "cell", "c1", file).rows == rows
    migrate.check(url, "cell", "c1")
