"""Who a service is on the bus, and who may connect: CURVE key pairs and keyrings, read from TOML files.

Key file: ``public_key``, ``secret_key`` (z85). Keyring: ``[[keys]]`` with name, public_key, role, cell, hosts.
"""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from zcompute import __version__
from zcompute.bus import BusConfigError, Identity, KeyEntry, Keyring
from zcompute.config import Config, ConfigError, Section, parse

PRIVATE = stat.S_IRWXG | stat.S_IRWXO

Z85Key = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]


class KeyFile(Section, frozen=True):
    """A service's own keys; both empty means plain, without CURVE."""

    public_key: Z85Key
    secret_key: Z85Key


class KeyringRow(Section, frozen=True):
    """Who one public key is."""

    name: str
    public_key: Z85Key
    role: str
    cell: str
    hosts: list[str] = []


class KeyringFile(Section, frozen=True):
    """All keys that may connect."""

    keys: list[KeyringRow] = []


def load_identity(config: Config, role: str, hosts: Iterable[str] = ()) -> Identity:
    """The identity that the configuration names; without a key file, one without CURVE. Raises ConfigError."""
    public_key, secret_key = read_key_file(config.bus.key_file)
    return Identity(
        role=role,
        cell=config.service.cell,
        service_id=config.service.id,
        release=__version__,
        hosts=frozenset(hosts),
        public_key=public_key,
        secret_key=secret_key,
    )


def read_key_file(path: str) -> tuple[str, str]:
    """(public, secret); two empty strings for no file. Raises ConfigError, also when others may read the file."""
    if not path:
        return "", ""
    text = _read(path)
    if Path(path).stat().st_mode & PRIVATE:
        raise ConfigError(f"{path}: others than its owner may read it: chmod 600")
    keys = parse(text, KeyFile, path)
    return keys.public_key, keys.secret_key


def read_keyring(path: str) -> Keyring | None:
    """The keyring, None for no file. Raises ConfigError."""
    if not path:
        return None
    rows = parse(_read(path), KeyringFile, path).keys
    try:
        return Keyring(KeyEntry(row.name, row.public_key, row.role, row.cell, frozenset(row.hosts)) for row in rows)
    except BusConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
