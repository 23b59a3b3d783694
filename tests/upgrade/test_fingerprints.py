"""Nothing that crosses the wire or is stored changes without its version."""

from pathlib import Path

import msgspec
import pytest

from tests.upgrade import declared, fingerprints
from tests.upgrade.fingerprints import HOW_TO, changed, merged, missing, present, read, read_wire_names, released


def test_nothing_changed_without_its_version() -> None:
    assert not changed(read(), present()), HOW_TO


def test_every_version_is_in_the_file() -> None:
    assert not missing(read(), present()), HOW_TO


def test_no_version_of_a_sealed_release_looks_otherwise_now() -> None:
    assert not changed(released(), present()), HOW_TO
    assert not changed(released(), read()), "fingerprints.json was edited"


def test_versions_only_rise() -> None:
    for sort, names in present().items():
        for name, versions in names.items():
            newest = max(map(_number, read()[sort][name]))
            assert [_number(version) for version in versions] == [newest], (sort, name, HOW_TO)


def test_errors_that_cross_the_wire_are_never_taken_back() -> None:
    assert set(read_wire_names()) == set(declared.wire_names()), HOW_TO


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


class Pet(msgspec.Struct, kw_only=True):
    name: str
    legs: int = 4


class Turned(msgspec.Struct, kw_only=True):
    legs: int = 4
    name: str


class Bird(msgspec.Struct, kw_only=True):
    name: str
    legs: int = 2


class Nameless(msgspec.Struct, kw_only=True):
    name: str | None = None
    legs: int = 4


class Winged(msgspec.Struct, kw_only=True):
    name: str
    legs: int = 4
    wings: int = 0


class Called(msgspec.Struct, kw_only=True, rename={"name": "called"}):
    name: str
    legs: int = 4


class Tagged(msgspec.Struct, kw_only=True, tag="pet"):
    name: str
    legs: int = 4


class Placed(msgspec.Struct, array_like=True):
    name: str
    legs: int = 4


@pytest.mark.parametrize("kind", [Bird, Nameless, Winged, Called, Tagged, Placed], ids=lambda kind: kind.__name__)
def test_a_change_of_a_field_changes_the_fingerprint(kind: type[msgspec.Struct]) -> None:
    assert declared._fingerprint(declared._struct(kind)) != declared._fingerprint(declared._struct(Pet))


def test_the_order_of_the_fields_of_a_map_does_not_count() -> None:
    assert declared._struct(Turned) == declared._struct(Pet)


def test_the_same_version_with_another_look_is_found_and_a_raised_one_is_new() -> None:
    known = {"objects": {"Pet": {"1.0": "aa"}}}
    assert changed(known, {"objects": {"Pet": {"1.0": "bb"}}}) == ["objects Pet 1.0 is bb, was aa"]
    assert not changed(known, {"objects": {"Pet": {"1.1": "bb"}}})
    assert missing(known, {"objects": {"Pet": {"1.1": "bb"}, "Bird": {"1.0": "cc"}}}) == [
        "objects Pet 1.1",
        "objects Bird 1.0",
    ]
    both = merged(known, {"objects": {"Pet": {"1.1": "bb"}}})
    assert both == {"objects": {"Pet": {"1.0": "aa", "1.1": "bb"}}}


def test_the_file_reads_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(fingerprints.text(present(), ["Busy"]))
    assert read(file) == present()
    assert read_wire_names(file) == ["Busy"]
