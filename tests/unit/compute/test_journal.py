import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from zcompute.compute.errors import JournalUnsupported, JournalWriteFailed
from zcompute.compute.journal import HEADER, RECORD_BYTES_MAX, Journal, JournalFile, frame, scan
from zcompute.compute.settings import Settings

RECORDS = st.lists(st.binary(min_size=1, max_size=40), max_size=12)


@given(RECORDS, st.data())
def test_a_cut_off_file_gives_the_records_before_the_cut(records: list[bytes], data: st.DataObject) -> None:
    whole = HEADER + b"".join(frame(record) for record in records)
    cut = data.draw(st.integers(0, len(whole)))
    scanned = scan(whole[:cut])
    found, end = scanned.records, scanned.end
    assert found == records[: len(found)]
    assert end <= cut
    if cut == len(whole):
        assert (found, end) == (records, cut)
    if found:
        assert end == len(HEADER + b"".join(frame(record) for record in found))


@given(RECORDS.filter(bool), st.data())
def test_a_garbled_byte_costs_its_record_only(records: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(HEADER + b"".join(frame(record) for record in records))
    at = data.draw(st.integers(len(HEADER), len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    scanned = scan(bytes(whole))
    intact, end = 0, len(HEADER)
    while end + len(frame(records[intact])) <= at:
        end += len(frame(records[intact]))
        intact += 1
    assert scanned.records == records[:intact] + records[intact + 1 :]
    assert scanned.unsound_bytes == (0 if intact + 1 == len(records) else len(frame(records[intact])))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(before=RECORDS, after=RECORDS, tail=st.binary(max_size=30))
def test_what_is_appended_after_a_torn_tail_is_read_back(
    tmp_path: Path, before: list[bytes], after: list[bytes], tail: bytes
) -> None:
    path = tmp_path / "journal"
    sound = HEADER + b"".join(frame(record) for record in before)
    scanned = scan(sound + tail)
    torn, end = scanned.records, scanned.end
    path.write_bytes(sound + tail)
    file = JournalFile(path)
    assert file.records == torn
    assert file.size_bytes == end
    for record in after:
        file.append(record)
    file.close()
    again = JournalFile(path)
    assert again.records == torn + after
    again.close()


def test_a_file_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"zcompute journal 9\nsomething")
    with pytest.raises(JournalUnsupported, match=str(path)):
        JournalFile(path)


@pytest.mark.parametrize("harm", ["truncated", "deleted", "replaced", "with its directory"])
def test_a_journal_that_somebody_harms_is_written_anew(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "d" / "journal"
    path.parent.mkdir()
    held = [b"one", b"two"]
    journal = Journal(path, lambda: held, Settings())
    journal.loaded()
    for record in held:
        journal.write(record)
    doubts: list[bool] = []
    journal.on_degraded = lambda: doubts.append(journal.degraded)
    journal.tend(0.0)
    assert doubts == []
    if harm == "truncated":
        os.truncate(path, 0)
    elif harm == "deleted":
        path.unlink()
    elif harm == "replaced":
        (tmp_path / "other").write_bytes(path.read_bytes())
        (tmp_path / "other").rename(path)
    else:
        shutil.rmtree(path.parent)
    journal.tend(0.0)
    assert (doubts, journal.degraded) == ([True], False)
    held.append(b"three")
    journal.write(b"three")
    journal.close()
    again = JournalFile(path)
    assert (again.records, again.lost) == (held, "")
    again.close()


def test_what_is_written_behind_a_hole_is_read_and_the_loss_is_known(tmp_path: Path) -> None:
    """Truncated under a running agent, which dies before it has seen that."""
    path = tmp_path / "journal"
    file = JournalFile(path)
    file.append(b"one")
    os.truncate(path, 0)
    file.append(b"two")
    file.close()
    again = JournalFile(path)
    assert (again.records, again.sound) == ([b"two"], False)
    assert "damaged" in again.lost
    again.close()


@pytest.mark.parametrize("content", [b"\0" * 100, b"something else altogether\n"])
def test_a_file_without_a_beginning_is_damaged_and_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    file = JournalFile(path)
    assert (file.records, file.sound) == ([], True)
    assert "damaged" in file.lost
    file.append(b"one")
    file.close()
    assert JournalFile(path).records == [b"one"]


def test_a_file_whose_creation_was_cut_off_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(HEADER[:5])
    file = JournalFile(path)
    file.append(b"one")
    file.close()
    assert JournalFile(path).records == [b"one"]


def test_a_record_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        frame(b"x" * (RECORD_BYTES_MAX + 1))


class FullDisk:
    """Lets ``bytes_left`` more bytes through, then answers ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bytes_left: int) -> None:
        self.bytes_left = bytes_left
        self._pwrite = os.pwrite
        monkeypatch.setattr("zcompute.compute.journal.os.pwrite", self.pwrite)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        if self.bytes_left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self.bytes_left]
        self.bytes_left -= len(part)
        return self._pwrite(descriptor, part, offset)


def test_a_write_that_fails_half_way_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JournalFile(tmp_path / "journal")
    file.append(b"first")
    disk = FullDisk(monkeypatch, 5)
    with pytest.raises(JournalWriteFailed, match="No space"):
        file.append(b"second, and longer")
    disk.bytes_left = 1000
    file.append(b"third")
    file.close()
    assert JournalFile(tmp_path / "journal").records == [b"first", b"third"]


def test_a_full_disk_degrades_and_all_of_it_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state: list[bytes] = []
    journal = Journal(tmp_path / "journal", lambda: iter(state), Settings(journal_retry_ms=1000))

    def write(record: bytes) -> bool:
        state.append(record)
        return journal.write(record)

    assert write(b"one")
    FullDisk(monkeypatch, 3)
    assert not write(b"two")
    assert not write(b"three")
    assert journal.degraded
    assert journal.writes_failed == 2
    assert len([r for r in caplog.records if "memory only" in r.getMessage()]) == 1
    monkeypatch.undo()
    assert not write(b"four")
    journal.tend(0.0)
    assert journal.degraded
    journal.tend(float("inf"))
    assert not journal.degraded
    assert write(b"five")
    journal.close()
    assert JournalFile(tmp_path / "journal").records == state


def test_a_journal_is_compacted_to_what_is_alive(tmp_path: Path) -> None:
    state = {0: b""}
    journal = Journal(tmp_path / "journal", lambda: iter(state.values()), Settings(compact_bytes_min=2000))
    for number in range(1000):
        state[0] = str(number).encode() * 10
        assert journal.write(state[0])
        assert journal.size_bytes < 2100
    journal.close()
    assert JournalFile(tmp_path / "journal").records[-1] == state[0]


def test_a_rewrite_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    file = JournalFile(path)
    file.append(b"one")
    (tmp_path / "journal.new").mkdir()
    with pytest.raises(JournalWriteFailed):
        file.rewrite([b"two"])
    file.append(b"three")
    file.close()
    assert JournalFile(path).records == [b"one", b"three"]
