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
    """What a public key may be: one role in one cell, speaking for these hosts.

    `old_public_key` is the key from before a rotation, equally good for as long as it is there ("" for none).
    """

    name: str
    public_key: str
    role: str
    cell: str
    hosts: frozenset[str] = frozenset()
    old_public_key: str = ""

    @property
    def public_keys(self) -> tuple[str, ...]:
        """Every key of the entry, the newest first."""
        return (self.public_key, self.old_public_key) if self.old_public_key else (self.public_key,)


class Keyring:
    """The keys that may connect. Raises BusConfigError when two entries share a name or a public key.

    `revoked` names public keys that are not let in and not dialled any more, whoever lists them.
    """

    def __init__(self, entries: Iterable[KeyEntry], revoked: Iterable[str] = ()) -> None:
        self.version = 0
        self._by_key: dict[str, KeyEntry] = {}
        self._by_name: dict[str, KeyEntry] = {}
        self._revoked: frozenset[str] = frozenset()
        self._own: tuple[KeyEntry, ...] = ()
        self._beside: dict[str, tuple[KeyEntry, ...]] = {}
        self.replace(entries, revoked)

    def replace(self, entries: Iterable[KeyEntry], revoked: Iterable[str] = ()) -> None:
        """Take a new set of keys; endpoints drop the links of keys that are gone or changed within a second."""
        own = tuple(entries)
        names: set[str] = set()
        keys: set[str] = set()
        for entry in own:
            if entry.name in names or any(key in keys for key in entry.public_keys):
                raise BusConfigError(f"expected each key once, found name={entry.name} again: remove one")
            names.add(entry.name)
            keys.update(entry.public_keys)
        self._own, self._revoked = own, frozenset(revoked)
        self._combine()

    def take_beside(self, source: str, entries: Iterable[KeyEntry]) -> None:
        """Take what another source lets in, instead of what it did before. An entry whose name or key is in the keyring
        itself, or in a source that was taken before, is left out: nobody is displaced. What is revoked stays out."""
        taken = tuple(entries)
        if self._beside.get(source, ()) != taken:
            self._beside[source] = taken
            self._combine()

    def _combine(self) -> None:
        by_key: dict[str, KeyEntry] = {}
        by_name: dict[str, KeyEntry] = {}
        entries = [(entry, False) for entry in self._own]
        entries += [(entry, True) for source in self._beside.values() for entry in source]
        for entry, beside in entries:
            if entry.name in by_name or any(key in by_key for key in entry.public_keys):
                continue
            if beside and not set(entry.public_keys) - self._revoked:
                continue
            by_name[entry.name] = entry
            by_key.update((key, entry) for key in entry.public_keys if key not in self._revoked)
        self._by_key, self._by_name = by_key, by_name
        self.version += 1

    def entries(self) -> list[KeyEntry]:
        """Every entry with a key that is let in, by name."""
        return [entry for _, entry in sorted(self._by_name.items()) if entry.public_key in self._by_key]

    def by_public_key(self, public_key: str) -> KeyEntry | None:
        """The entry of a Z85 public key, None when unknown or revoked."""
        return self._by_key.get(public_key)

    def by_name(self, name: str) -> KeyEntry | None:
        """The entry of this name, None when unknown."""
        return self._by_name.get(name)

    def holds(self, name: str, public_key: str) -> KeyEntry | None:
        """The entry under which this key was let in as `name`, None when that does not hold any more."""
        entry = self._by_key.get(public_key)
        return entry if entry is not None and entry.name == name else None

    def is_revoked(self, public_key: str) -> bool:
        """Whether the key was revoked by name (a key that is merely unknown is not)."""
        return public_key in self._revoked


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
