"""Key files and keyrings: read strictly, refused by name."""

import os

import pytest

from zcompute import __version__
from zcompute.config import Config, ConfigError, parse
from zcompute.keys import load_identity, read_key_file, read_keyring

KEY = "x" * 40


def test_the_identity_comes_from_the_key_file(tmp_path):
    key_file = tmp_path / "key.toml"
    key_file.write_text(f'public_key = "{KEY}"\nsecret_key = "{KEY}"\n')
    os.chmod(key_file, 0o600)
    service = f'[service]\nid = "agent1"\ncell = "c1"\nstate_dir = "{tmp_path}"\n'
    with_key = parse(f'{service}[bus]\nkey_file = "{key_file}"\n', Config)
    identity = load_identity(with_key, "compute", ["node1", "node2"])
    assert (identity.role, identity.cell, identity.service_id) == ("compute", "c1", "agent1")
    assert (identity.public_key, identity.release) == (KEY, __version__)
    assert identity.hosts == {"node1", "node2"}
    key_file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_identity(with_key, "compute", ["node1"])
    assert load_identity(parse(service, Config), "api").secret_key == ""


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
