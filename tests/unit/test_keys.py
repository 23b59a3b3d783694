"""Key files and keyrings: read strictly, refused by name."""

import os
from datetime import UTC, datetime

import msgspec
import pytest

from zcompute import __version__
from zcompute.config import Config, ConfigError, parse
from zcompute.keys import KeyringFile, KeyringRow, keyring_content, load_identity, read_key_file, read_keyring

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
    os.chmod(path, 0o644)
    entry = read_keyring(str(path)).by_public_key(KEY)
    assert (entry.name, entry.hosts) == ("one", frozenset({"h1"}))
    path.write_text(row.format("one") + row.format("two"))
    with pytest.raises(ConfigError, match="once"):
        read_keyring(str(path))
    assert read_keyring("") is None


def test_a_keyring_that_others_can_write_is_refused(tmp_path):
    path = tmp_path / "keyring.toml"
    path.write_text("")
    os.chmod(path, 0o664)
    with pytest.raises(ConfigError, match="chmod go-w"):
        read_keyring(str(path))


def test_the_old_key_of_a_rotation_counts_until_its_date():
    old, until = "y" * 40, "2030-05-01T12:00:00Z"
    row = KeyringRow(name="one", public_key=KEY, role="api", cell="root", old_public_key=old, old_until=until)
    before, after = datetime(2030, 5, 1, 11, 59, tzinfo=UTC), datetime(2030, 5, 1, 12, 0, tzinfo=UTC)
    content = keyring_content(KeyringFile(keys=[row]), before)
    assert (content.entries[0].public_keys, content.expires_at) == ((KEY, old), after)
    content = keyring_content(KeyringFile(keys=[row]), after)
    assert (content.entries[0].public_keys, content.expires_at) == ((KEY,), None)
    by_hand = msgspec.structs.replace(row, old_until="")
    assert keyring_content(KeyringFile(keys=[by_hand]), after).entries[0].public_keys == (KEY, old)
    with pytest.raises(ConfigError, match="old_until"):
        keyring_content(KeyringFile(keys=[msgspec.structs.replace(row, old_until="tomorrow")]), after)
