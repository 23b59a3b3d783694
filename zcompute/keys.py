"""Who a service is on the bus, and who may connect: CURVE key pairs and keyrings, read from TOML files.

Key file: ``public_key``, ``secret_key`` (z85); of a conductor also ``listen``, and ``[next]`` while its server key is
being rotated. Keyring: ``[[keys]]`` with name, public_key, role, cell, hosts, and during a rotation old_public_key and
old_until; ``revoked``, public keys that are never let in.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from zcompute import __version__
from zcompute.bus import BusConfigError, Identity, KeyEntry, Keyring
from zcompute.config import Config, ConfigError, Section, parse

PRIVATE = stat.S_IRWXG | stat.S_IRWXO
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Z85Key = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]
MaybeZ85Key = Annotated[str, msgspec.Meta(pattern="^(.{40})?$")]


class NextKeys(Section, frozen=True):
    """The server key that a conductor is changing to, and the second address where it listens with it."""

    public_key: Z85Key
    secret_key: Z85Key
    listen: Annotated[str, msgspec.Meta(pattern="^tcp://.+:[1-9][0-9]*$")]


class KeyFile(Section, frozen=True):
    """A service's own keys. ``listen`` (conductors, after a rotation) goes before the configuration's."""

    public_key: Z85Key
    secret_key: Z85Key
    listen: str = ""
    next: NextKeys | None = None


class KeyringRow(Section, frozen=True):
    """Who one public key is."""

    name: str
    public_key: Z85Key
    role: str
    cell: str
    hosts: list[str] = []
    old_public_key: MaybeZ85Key = ""
    old_until: str = ""


class KeyringFile(Section, frozen=True):
    """All keys that may connect, and those that never may again."""

    revoked: list[Z85Key] = []
    keys: list[KeyringRow] = []


@dataclass(frozen=True)
class KeyringContent:
    """What a keyring file says at a moment. ``expires_at``: when the first old key of a rotation ends, None for never
    (an aware datetime, UTC: it is a date that an operator wrote)."""

    entries: tuple[KeyEntry, ...]
    revoked: frozenset[str]
    expires_at: datetime | None


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
    keys = read_keys(path)
    return keys.public_key, keys.secret_key


def read_keys(path: str) -> KeyFile:
    """A whole key file. Raises ConfigError, also when others may read the file."""
    text = _read(path)
    if Path(path).stat().st_mode & PRIVATE:
        raise ConfigError(f"{path}: others than its owner may read it: chmod 600")
    return parse(text, KeyFile, path)


def read_keyring(path: str) -> Keyring | None:
    """The keyring as it is now, None for no file. Raises ConfigError."""
    if not path:
        return None
    content = keyring_content(read_keyring_file(path), datetime.now(UTC), path)
    return Keyring(content.entries, content.revoked)


def read_keyring_file(path: str) -> KeyringFile:
    """A keyring file. Raises ConfigError, also when others may write it: they could let themselves in."""
    text = _read(path)
    if Path(path).stat().st_mode & WRITABLE_BY_OTHERS:
        raise ConfigError(f"{path}: others than its owner may write it: chmod go-w")
    return parse(text, KeyringFile, path)


def keyring_content(file: KeyringFile, now: datetime, path: str = "keyring") -> KeyringContent:
    """What the file means at ``now`` (aware): an old key counts until its date. Raises ConfigError."""
    entries, dates = [], []
    for row in file.keys:
        until = old_until(row, path) if row.old_public_key else None
        still = bool(row.old_public_key) and (until is None or now < until)
        if still and until is not None:
            dates.append(until)
        old_key = row.old_public_key if still else ""
        entries.append(KeyEntry(row.name, row.public_key, row.role, row.cell, frozenset(row.hosts), old_key))
    try:
        Keyring(entries)
    except BusConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return KeyringContent(tuple(entries), frozenset(file.revoked), min(dates, default=None))


def old_until(row: KeyringRow, path: str = "keyring") -> datetime | None:
    """When the old key of a row ends; None: when the rotation is finished by hand. Raises ConfigError."""
    if not row.old_until:
        return None
    try:
        until = datetime.fromisoformat(row.old_until)
    except ValueError as error:
        raise ConfigError(
            f"{path}: key {row.name}: old_until: expected a date and time, found {row.old_until!r}"
        ) from error
    return until if until.tzinfo is not None else until.replace(tzinfo=UTC)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
