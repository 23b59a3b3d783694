"""Whether the records of a state directory are complete, as one process tells the next."""

import errno
import os
from pathlib import Path

import pytest

from zcompute.compute.doubt import Doubt


@pytest.fixture
def boot_id(tmp_path: Path) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("boot-1\n")
    return path


def _open(tmp_path: Path, boot_id: Path) -> Doubt:
    return Doubt(tmp_path / "complete", boot_id)


def test_a_new_directory_is_in_doubt_until_it_is_settled(tmp_path: Path, boot_id: Path) -> None:
    doubt = _open(tmp_path, boot_id)
    assert (doubt.here, doubt.on_disk) == (True, True)
    doubt.settle_on_disk()
    assert doubt.on_disk, "what this process does not know is not on disk either"
    doubt.settle_here()
    doubt.settle_on_disk()
    assert not _open(tmp_path, boot_id).here


def test_a_process_that_dies_in_doubt_leaves_it_to_the_next(tmp_path: Path, boot_id: Path) -> None:
    _open(tmp_path, boot_id)
    assert _open(tmp_path, boot_id).here


def test_what_could_not_be_written_puts_the_next_process_in_doubt_unless_it_is_written_later(
    tmp_path: Path, boot_id: Path
) -> None:
    doubt = _open(tmp_path, boot_id)
    doubt.settle_here()
    doubt.settle_on_disk()
    assert doubt.raise_on_disk()
    assert not doubt.here
    assert _open(tmp_path, boot_id).here
    doubt.settle_on_disk()
    assert not _open(tmp_path, boot_id).here


def test_another_boot_of_the_machine_is_a_doubt(tmp_path: Path, boot_id: Path) -> None:
    doubt = _open(tmp_path, boot_id)
    doubt.settle_here()
    doubt.settle_on_disk()
    boot_id.write_text("boot-2\n")
    assert _open(tmp_path, boot_id).here


def test_a_full_disk_does_not_matter_to_it_and_a_broken_one_is_told(
    tmp_path: Path, boot_id: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubt = _open(tmp_path, boot_id)
    size_bytes = (tmp_path / "complete").stat().st_size
    doubt.settle_here()
    doubt.settle_on_disk()
    assert (tmp_path / "complete").stat().st_size == size_bytes

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", broken)
    assert not doubt.raise_on_disk()
    monkeypatch.undo()
    assert doubt.raise_on_disk()
