"""The key files of a running conductor: what an operator changes counts, a mistake changes nothing."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zcompute.bus import Keyring
from zcompute.cli.toml_text import dumps
from zcompute.conductor.doors import Door, doors_of
from zcompute.conductor.keywatch import KeyWatch
from zcompute.keys import KeyFile, NextKeys

NOW = datetime(2030, 5, 1, tzinfo=UTC)
A, B, C = "a" * 40, "b" * 40, "c" * 40


def row(name: str, key: str, **more: str) -> dict[str, object]:
    return {"name": name, "public_key": key, "role": "compute", "cell": "c1", "hosts": ["h1"], **more}


def write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.chmod(fresh, 0o600)
    fresh.rename(path)


def test_an_edited_keyring_is_read_and_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "keyring.toml"
    keyring = Keyring([])
    watch = KeyWatch(str(path), keyring, "")
    write(path, dumps({"keys": [row("one", A), row("two", B)]}))
    watch.look(NOW)
    assert keyring.by_public_key(A)
    version = keyring.version
    watch.look(NOW)
    assert keyring.version == version, "read again without a change"
    write(path, dumps({"keys": [row("two", B)], "revoked": [A]}))
    watch.look(NOW)
    assert keyring.by_public_key(A) is None
    assert keyring.is_revoked(A)
    write(path, "[[keys]\n")
    watch.look(NOW)
    path.unlink()
    watch.look(NOW)
    assert keyring.by_public_key(B), "the former content counts"
    write(path, dumps({"keys": [row("one", A)]}))
    watch.look(NOW)
    assert keyring.by_public_key(A)


def test_the_old_key_of_a_rotation_ends_at_its_date_without_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "keyring.toml"
    keyring = Keyring([])
    watch = KeyWatch(str(path), keyring, "")
    write(path, dumps({"keys": [row("one", A, old_public_key=B, old_until=(NOW + timedelta(hours=1)).isoformat())]}))
    watch.look(NOW)
    assert keyring.holds("one", B)
    watch.look(NOW + timedelta(hours=2))
    assert keyring.holds("one", A)
    assert keyring.holds("one", B) is None


def test_the_next_key_of_a_key_file_is_a_second_door_and_the_one_to_announce() -> None:
    keys = KeyFile(public_key=A, secret_key=B, next=NextKeys(public_key=C, secret_key=B, listen="tcp://h:2"))
    assert doors_of(None, "tcp://h:1") == [Door("tcp://h:1")]
    assert doors_of(keys, "tcp://h:1") == [Door("tcp://h:1", A, B), Door("tcp://h:2", C, B)]
    settled = KeyFile(public_key=C, secret_key=B, listen="tcp://h:2")
    assert doors_of(settled, "tcp://h:1") == [Door("tcp://h:2", C, B)]
