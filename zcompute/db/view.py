"""What reading handlers see of a database, wherever they are read from. A Store is one too."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from zcompute.db import lists, reads
from zcompute.db.session import Session
from zcompute.db.tables import Key, TableCodec
from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.instance import Instance
from zcompute.objects.messages.instances import InstanceBrief, InstanceQuery

T = TypeVar("T", bound=VersionedObject)
K = TypeVar("K", bound=Hashable)
A = TypeVar("A")


class View(Protocol):
    """The reads of clients (zcompute.db.store.Store says what each does)."""

    def fetch(self, table: TableCodec[T], keys: Sequence[Key]) -> dict[Key, T]:
        """Store.fetch."""

    def scan(
        self,
        table: TableCodec[T],
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int,
        after: Key | None = None,
    ) -> list[T]:
        """Store.scan."""

    def list_instances(self, query: InstanceQuery) -> list[Instance]:
        """Store.list_instances."""

    def list_briefs(self, query: InstanceQuery) -> list[InstanceBrief]:
        """Store.list_briefs."""

    def count_instances(self, query: InstanceQuery, without: Sequence[str] = ()) -> int:
        """Store.count_instances."""

    def list_build_requests(self, query: InstanceQuery) -> list[BuildRequest]:
        """Store.list_build_requests."""


class SessionView:
    """A View over one borrowed connection."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def fetch(self, table: TableCodec[T], keys: Sequence[Key]) -> dict[Key, T]:
        return reads.fetch(self._session, table, keys) if keys else {}

    def scan(
        self,
        table: TableCodec[T],
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int,
        after: Key | None = None,
    ) -> list[T]:
        return reads.scan(self._session, table, partitions=partitions, where=where, limit=limit, after=after)

    def list_instances(self, query: InstanceQuery) -> list[Instance]:
        return lists.list_instances(self._session, query)

    def list_briefs(self, query: InstanceQuery) -> list[InstanceBrief]:
        return lists.list_briefs(self._session, query)

    def count_instances(self, query: InstanceQuery, without: Sequence[str] = ()) -> int:
        return lists.count_instances(self._session, query, without)

    def list_build_requests(self, query: InstanceQuery) -> list[BuildRequest]:
        return lists.list_build_requests(self._session, query)


@dataclass(frozen=True)
class Joined(Generic[K, A]):
    """A question by key of which many are asked at once: ``ask`` answers several of them on one View. One ``name`` is
    one question."""

    name: str
    ask: Callable[[View, list[K]], Mapping[K, A]]


def by_key(table: TableCodec[T]) -> Joined[Key, T]:
    """The row with this key."""
    return Joined(table.name, lambda view, keys: view.fetch(table, keys))
