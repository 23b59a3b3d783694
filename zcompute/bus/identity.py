"""Who an endpoint is, which keys it knows, and who a peer turned out to be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zcompute.bus.errors import BusConfigError, Forbidden

VersionRange = tuple[tuple[int, int], tuple[int, int]]
"""Lowest and highest (major, minor) of an interface."""

SINGLE_SERVICE_ROLES = frozenset({"compute"})
"""Roles whose key belongs to one service id; keys of the others may be shared (`links_per_key_max`)."""


@dataclass(frozen=True)
class Identity:
    """Who this endpoint says it is. Keys are Z85 strings of 40 characters; "" means plain, without CURVE."""

    role: str
    cell: str
    service_id: str
    release: str = "0"
    hosts: frozenset[str] = frozenset()
    public_key: str = ""
    secret_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class KeyEntry:
    """What a public key may be: one role in one cell, speaking for these hosts."""

    name: str
    public_key: str
    role: str
    cell: str
    hosts: frozenset[str] = frozenset()


class Keyring:
    """The keys that may connect. Raises BusConfigError when two entries share a name or a public key."""

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self.version = 0
        self._by_key: dict[str, KeyEntry] = {}
        self._by_name: dict[str, KeyEntry] = {}
        self.replace(entries)

    def replace(self, entries: Iterable[KeyEntry]) -> None:
        """Take a new set of keys; endpoints drop the links of keys that are gone or changed within a second."""
        by_key: dict[str, KeyEntry] = {}
        by_name: dict[str, KeyEntry] = {}
        for entry in entries:
            if entry.public_key in by_key or entry.name in by_name:
                raise BusConfigError(f"expected each key once, found name={entry.name} again: remove one")
            by_key[entry.public_key] = entry
            by_name[entry.name] = entry
        self._by_key, self._by_name = by_key, by_name
        self.version += 1

    def by_public_key(self, public_key: str) -> KeyEntry | None:
        """The entry of a Z85 public key, None when unknown."""
        return self._by_key.get(public_key)

    def by_name(self, name: str) -> KeyEntry | None:
        """The entry of this name, None when unknown."""
        return self._by_name.get(name)


@dataclass(frozen=True)
class Peer:
    """The other end of a link, as its hello said and its key allowed."""

    role: str
    cell: str
    service_id: str
    incarnation: str
    release: str
    hosts: frozenset[str]
    key_name: str
    interfaces: Mapping[str, VersionRange]
    attributes: Mapping[str, Any]
    topics: frozenset[str]


def check_against_key(peer: Peer, entry: KeyEntry) -> None:
    """Raise Forbidden when a hello claims more than its key is entitled to."""
    if peer.role != entry.role:
        raise Forbidden(f"key {entry.name} is of role {entry.role!r}, the hello says {peer.role!r}")
    if peer.cell != entry.cell:
        raise Forbidden(f"key {entry.name} belongs to cell {entry.cell!r}, the hello says {peer.cell!r}")
    excess = sorted(peer.hosts - entry.hosts)
    if excess:
        raise Forbidden(f"key {entry.name} does not speak for hosts {excess[:5]}")
