"""``zcompute keys``: what it writes, how strictly, and what it refuses."""

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zcompute.cli.exits import FAILED, OK, USAGE
from zcompute.cli.keys_commands import keys
from zcompute.keys import read_key_file, read_keyring, read_keys


class Desk:
    """A directory of keys, and the command over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keyring = path / "keyring-c1.toml"
        self.root_keyring = path / "keyring-root.toml"

    def run(self, *arguments: str, keyrings: tuple[Path, ...] = ()) -> Result:
        named = [word for path in keyrings or (self.keyring,) for word in ("--keyring", str(path))]
        return CliRunner().invoke(keys, [*arguments, *named])

    def done(self, *arguments: str, keyrings: tuple[Path, ...] = ()) -> dict[str, object]:
        result = self.run(*arguments, "--format", "json", keyrings=keyrings)
        assert result.exit_code == OK, result.output
        answer: dict[str, object] = json.loads(result.output)
        return answer

    def create_compute(self) -> Path:
        key_file = self.path / "compute-1.toml"
        self.done(
            "create", "compute-1", "--role", "compute", "--cell", "c1", "--host", "h1", "--key-file", str(key_file)
        )
        return key_file


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "keys").mkdir(mode=0o700)
    return Desk(tmp_path / "keys")


def test_create_writes_a_private_pair_and_the_entry_of_its_public_key(desk: Desk) -> None:
    key_file = desk.create_compute()
    public, _ = read_key_file(str(key_file))
    for path in (key_file, desk.keyring):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keyring = read_keyring(str(desk.keyring))
    assert keyring is not None
    entry = keyring.by_public_key(public)
    assert entry is not None
    assert (entry.name, entry.role, entry.cell, entry.hosts) == ("compute-1", "compute", "c1", frozenset({"h1"}))


def test_a_key_that_was_made_elsewhere_enters_by_its_public_half(desk: Desk) -> None:
    desk.done("create", "api-1", "--role", "api", "--cell", "root", "--public-key", "p" * 40)
    keyring = read_keyring(str(desk.keyring))
    assert keyring is not None
    assert keyring.by_public_key("p" * 40)
    assert not list(desk.path.glob("api-1*"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("create", "compute-1", "--role", "compute", "--cell", "c1", "--host", "h", "--public-key", "q" * 40), FAILED),
        (("create", "x", "--role", "compute", "--cell", "c1", "--public-key", "q" * 40), USAGE),
        (("create", "x", "--role", "api", "--cell", "c1", "--host", "h", "--public-key", "q" * 40), USAGE),
        (("create", "x", "--role", "api", "--cell", "c1"), USAGE),
        (("create", "x", "--role", "api", "--cell", "c1", "--public-key", "short"), USAGE),
        (("create", "x", "--role", "emperor", "--cell", "c1", "--public-key", "q" * 40), USAGE),
        (("rotate", "nobody", "--public-key", "q" * 40), FAILED),
        (("rotate", "compute-1", "--public-key", "q" * 40, "--listen", "tcp://h:1"), USAGE),
        (("revoke", "nobody"), FAILED),
    ],
)
def test_what_is_refused_changes_nothing(desk: Desk, arguments: tuple[str, ...], code: int) -> None:
    desk.create_compute()
    before = desk.keyring.read_bytes()
    result = desk.run(*arguments)
    assert result.exit_code == code, result.output
    assert desk.keyring.read_bytes() == before


def test_files_that_others_may_touch_are_refused(desk: Desk) -> None:
    key_file = desk.create_compute()
    os.chmod(desk.path, 0o770)
    assert desk.run("revoke", "compute-1").exit_code == USAGE
    os.chmod(desk.path, 0o700)
    os.chmod(key_file, 0o640)
    assert desk.run("rotate", "compute-1", "--key-file", str(key_file)).exit_code == USAGE
    os.chmod(desk.keyring, 0o666)
    assert desk.run("list").exit_code == USAGE


def test_rotation_keeps_the_old_key_until_it_is_finished(desk: Desk) -> None:
    key_file = desk.create_compute()
    old, _ = read_key_file(str(key_file))
    desk.done("rotate", "compute-1", "--key-file", str(key_file))
    new, _ = read_key_file(str(key_file))
    keyring = read_keyring(str(desk.keyring))
    assert keyring is not None
    assert keyring.holds("compute-1", old)
    assert keyring.holds("compute-1", new)
    (row,) = desk.done("list")["keys"]  # type: ignore[misc]  # JSON: known to be a list here
    assert row["state"].startswith("rotating until ")
    assert desk.run("rotate", "compute-1", "--key-file", str(key_file)).exit_code == FAILED
    desk.done("rotate", "compute-1", "--finish")
    desk.done("rotate", "compute-1", "--finish")
    keyring = read_keyring(str(desk.keyring))
    assert keyring is not None
    assert keyring.holds("compute-1", new)
    assert keyring.holds("compute-1", old) is None


def test_a_conductors_rotation_is_a_second_port_in_its_key_file(desk: Desk) -> None:
    key_file = desk.path / "conductor-1.toml"
    both = (desk.keyring, desk.root_keyring)
    of_conductor = ("conductor-1", "--key-file", str(key_file))
    desk.done("create", *of_conductor, "--role", "conductor", "--cell", "c1", keyrings=both)
    old = read_keys(str(key_file))
    assert desk.run("rotate", *of_conductor, keyrings=both).exit_code == USAGE
    assert desk.run("rotate", *of_conductor, "--listen", "tcp://h:0", keyrings=both).exit_code == USAGE
    desk.done("rotate", *of_conductor, "--listen", "tcp://127.0.0.1:20001", keyrings=both)
    during = read_keys(str(key_file))
    assert during.public_key == old.public_key
    assert during.next is not None
    for path in both:
        keyring = read_keyring(str(path))
        assert keyring is not None
        assert keyring.holds("conductor-1", old.public_key)
        assert keyring.holds("conductor-1", during.next.public_key)
    desk.done("rotate", *of_conductor, "--finish", keyrings=both)
    after = read_keys(str(key_file))
    assert (after.public_key, after.listen, after.next) == (during.next.public_key, "tcp://127.0.0.1:20001", None)


def test_revoke_removes_the_entry_and_bars_its_keys_for_good(desk: Desk) -> None:
    key_file = desk.create_compute()
    public, _ = read_key_file(str(key_file))
    desk.done("revoke", "compute-1")
    keyring = read_keyring(str(desk.keyring))
    assert keyring is not None
    assert keyring.by_public_key(public) is None
    assert keyring.is_revoked(public)
    again = desk.run("create", "compute-1", "--role", "compute", "--cell", "c1", "--host", "h", "--public-key", public)
    assert again.exit_code == FAILED
    assert "revoked" in again.output


def test_the_list_shows_names_and_no_secret(desk: Desk) -> None:
    key_file = desk.create_compute()
    _, secret = read_key_file(str(key_file))
    result = desk.run("list")
    assert result.exit_code == OK
    assert "compute-1" in result.output
    assert "1 keys, 0 revoked" in result.output
    assert secret not in result.output
