from pathlib import Path

from zcompute.compute.fences import EPOCH_MAX, Fences
from zcompute.objects.partition import PARTITIONS


def test_fences_never_fall_and_outlive_the_process(tmp_path: Path) -> None:
    fences = Fences(tmp_path / "fences")
    assert fences.allows(7, 0)
    fences.raise_to(7, 5)
    fences.raise_to(7, 3)
    fences.raise_all([4] * PARTITIONS)
    fences.raise_to(255, EPOCH_MAX)
    assert not fences.allows(7, 4)
    assert fences.allows(7, 5)
    fences.close()

    again = Fences(tmp_path / "fences")
    assert (again.epochs[7], again.epochs[8], again.epochs[255]) == (5, 4, EPOCH_MAX)
    assert not again.allows(8, 3)
    again.close()


def test_a_short_file_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "fences"
    path.write_bytes((9).to_bytes(8, "little") + b"\x01")
    fences = Fences(path)
    assert fences.epochs[0] == 9
    assert fences.epochs[1] == 1
    assert fences.epochs[2:] == [0] * (PARTITIONS - 2)
    assert path.stat().st_size == 8 * PARTITIONS
    fences.close()
