import os

import pytest

from zcompute.conductor.dials import Dials, places
from zcompute.conductor.keys import read_key_file, read_keyring
from zcompute.config import ConfigError, PeerConfig
from zcompute.objects.partition import ConductorInfo

KEY = "x" * 40


def info(name, address="tcp://a:1", key=KEY):
    return ConductorInfo(service_id=name, incarnation="i", address=address, public_key=key)


class Endpoint:
    def __init__(self):
        self.dialled, self.hung_up = [], []

    def dial(self, address, key):
        self.dialled.append(address)
        return address

    def hang_up(self, link):
        self.hung_up.append(link)


def test_one_link_a_pair_and_the_map_knows_better():
    configured = [PeerConfig(id="a", address="tcp://a:1"), PeerConfig(id="c", address="tcp://c:1")]
    mapped = {"c": info("c", "tcp://c:2"), "d": info("d", "tcp://d:1")}
    assert places(configured, mapped, "b") == {"c": ("tcp://c:2", KEY), "d": ("tcp://d:1", KEY)}
    assert set(places(configured, mapped, None)) == {"a", "c", "d"}


def test_dials_follow_the_map():
    endpoint = Endpoint()
    dials = Dials(endpoint, [PeerConfig(id="b", address="tcp://b:1")], "a")
    dials.update({})
    dials.update({"c": info("c", "tcp://c:1")})
    dials.update({"c": info("c", "tcp://c:1")})
    dials.update({"c": info("c", "tcp://c:2")})
    dials.update({})
    assert endpoint.dialled == ["tcp://b:1", "tcp://c:1", "tcp://c:2"]
    assert endpoint.hung_up == ["tcp://c:1", "tcp://c:2"]


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "key.toml"
    path.write_text(f'public_key = "{KEY}"\nsecret_key = "{KEY}"\n')
    os.chmod(path, 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key_file(str(path))
    os.chmod(path, 0o600)
    assert read_key_file(str(path)) == (KEY, KEY)
    assert read_key_file("") == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        'public_key = "short"\nsecret_key = "short"\n',
        "nonsense = 1\n",
        "not toml",
    ],
)
def test_a_broken_key_file_names_itself(tmp_path, text):
    path = tmp_path / "key.toml"
    path.write_text(text)
    os.chmod(path, 0o600)
    with pytest.raises(ConfigError, match=r"key\.toml"):
        read_key_file(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(str(tmp_path / "absent"))


def test_the_keyring_names_every_key_once(tmp_path):
    row = f'[[keys]]\nname = "{{}}"\npublic_key = "{KEY}"\nrole = "compute"\ncell = "c1"\nhosts = ["h1"]\n'
    path = tmp_path / "keyring.toml"
    path.write_text(row.format("one"))
    entry = read_keyring(str(path)).by_public_key(KEY)
    assert (entry.name, entry.hosts) == ("one", frozenset({"h1"}))
    path.write_text(row.format("one") + row.format("two"))
    with pytest.raises(ConfigError, match="once"):
        read_keyring(str(path))
    assert read_keyring("") is None
