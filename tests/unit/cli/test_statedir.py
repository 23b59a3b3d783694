"""Version, lock and ports of a state directory."""

import os
import socket
import stat
import tempfile
import tomllib
from pathlib import Path

import pytest

from zcompute.cli import exits
from zcompute.cli.toml_text import dumps
from zcompute.cli.up import statedir
from zcompute.cli.up.keys import key_pair, token, write_keyring
from zcompute.cli.up.layout import Paths, RegionFile
from zcompute.cli.up.region import Region


def test_a_second_lock_is_refused_until_the_first_is_given_up(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "s")
    held = statedir.take_lock(paths)
    with pytest.raises(exits.StateDirInUse, match=f"pid {os.getpid()}"):
        statedir.take_lock(paths)
    os.close(held)
    os.close(statedir.take_lock(paths))


def test_region_toml_reads_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    region = RegionFile(database="sqlite", api_port=1, bus_ports={"c1-conductor-1": 20001})
    statedir.write_region(paths, region)
    assert statedir.read_region(paths) == region
    paths.region.write_text("database = 7\n")
    with pytest.raises(exits.UsageRefused, match=r"region\.toml cannot be read"):
        statedir.read_region(paths)


def test_ports_are_kept_and_chosen_again_when_taken() -> None:
    first = statedir.free_ports(["a", "b"], {})
    assert statedir.free_ports(["a", "b"], first) == first
    assert all(statedir.PORT_FIRST <= port <= statedir.PORT_LAST for port in first.values())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["a"]))
        taken.listen()
        again = statedir.free_ports(["a", "b"], first)
    assert again["a"] not in first.values()
    assert again["b"] == first["b"]


def test_two_that_choose_ports_before_either_listens_choose_others() -> None:
    first, second = statedir.free_ports(list("abc"), {}), statedir.free_ports(list("abc"), {})
    assert not set(first.values()) & set(second.values())


def test_a_file_of_chosen_ports_that_is_broken_or_old_keeps_nobody_from_choosing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    every = range(statedir.PORT_FIRST, statedir.PORT_LAST + 1)
    (kept,) = [tmp_path / f"zcompute-ports-{os.getuid()}"]
    kept.write_text("".join(f"{port} 0.001\n" for port in every) + "half a li\n7\n")
    ports = statedir.free_ports(["a", "b"], {})
    assert len(kept.read_text().splitlines()) == len(ports) == 2


def test_keys_and_tokens_are_made_once_and_are_their_owners_only(tmp_path: Path) -> None:
    key_file, token_file = tmp_path / "keys" / "a.toml", tmp_path / "tokens.toml"
    assert key_pair(key_file) == key_pair(key_file)
    assert token(token_file, "demo", "admin") == token(token_file, "demo", "admin")
    for path in (key_file, token_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_create_gives_the_lock_up(tmp_path: Path) -> None:
    with socket.socket() as taken:
        port = statedir.free_ports(["x"], {})["x"]
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(exits.PortInUse):
            Region.create(tmp_path / "s", "sqlite", api_port=port)
    region = Region.create(tmp_path / "s", "sqlite", api_port=port)
    region.stop()
    with pytest.raises(exits.UsageRefused, match="holds no region"):
        Region.load(tmp_path / "elsewhere")


def test_what_an_operator_did_to_a_keyring_survives_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "keyring.toml"
    a, b, c = ({"name": name, "public_key": name * 40, "role": "api", "cell": "root", "hosts": []} for name in "abc")
    write_keyring(path, {"keys": [a, b]})
    rotated = {**a, "old_public_key": "z" * 40}
    path.write_text(dumps({"revoked": ["b" * 40], "keys": [rotated, c]}))
    write_keyring(path, {"keys": [a, b]})
    assert tomllib.loads(path.read_text()) == {"revoked": ["b" * 40], "keys": [rotated, c]}


def test_a_start_settles_a_rotation_of_a_server_key(tmp_path: Path) -> None:
    path = tmp_path / "key.toml"
    newer = {"public_key": "n" * 40, "secret_key": "m" * 40}
    path.write_text(dumps({"public_key": "a" * 40, "secret_key": "b" * 40, "next": {**newer, "listen": "tcp://h:1"}}))
    assert key_pair(path).public_key == "n" * 40
    assert tomllib.loads(path.read_text()) == newer
