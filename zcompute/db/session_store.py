"""The parts of a Store that both drivers share: everything but the lanes and the beaters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from zcompute.db import lists, ownership, packed_forms, reads, usage_sums
from zcompute.db.session import Sessions
from zcompute.db.store import KIND_MARIADB, ConductorRow, MapRows, ToldRow
from zcompute.db.tables import Key, TableCodec
from zcompute.db.view import SessionView, View
from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.instance import Instance
from zcompute.objects.messages.instances import InstanceBrief, InstanceQuery
from zcompute.objects.quota import ProjectUsage

T = TypeVar("T", bound=VersionedObject)
R = TypeVar("R")


class SessionStore:
    """A Store over ``Sessions``; the drivers add open_lane and open_beater."""

    def __init__(self, kind: str, url: str, sessions: Sessions) -> None:
        self.kind = kind
        self.url = url
        self._sessions = sessions

    def read_until(self, ends_at_s: float, work: Callable[[View], R]) -> R:
        return self._sessions.read_until(ends_at_s, lambda session: work(SessionView(session)))

    def now_us(self) -> int:
        return self._sessions.now_us()

    def register(self, conductor: ConductorRow, lanes: int) -> list[int]:
        return ownership.register(self._sessions, conductor, lanes)

    def read_beats(self) -> dict[str, int]:
        return self._sessions.read(ownership.read_beats)

    def attended(self, incarnations: Sequence[str]) -> set[str]:
        if not incarnations or self.kind != KIND_MARIADB:
            return set()
        return self._sessions.read(lambda session: ownership.attended(session, incarnations))

    def read_map(self) -> MapRows:
        return self._sessions.read(ownership.read_map)

    def read_told(self) -> list[ToldRow]:
        return self._sessions.read(reads.told)

    def read_schema(self) -> list[str]:
        return self._sessions.read(reads.schema)

    def take_over(
        self, dead: Sequence[str], lanes: Sequence[int], term: int, partitions: Sequence[int] | None = None
    ) -> int:
        return ownership.take_over(self._sessions, dead, lanes, term, partitions)

    def readdress(self, service_id: str, incarnation: str, address: str, public_key: str) -> int:
        return ownership.readdress(self._sessions, service_id, incarnation, address, public_key)

    def release(self, incarnation: str) -> None:
        ownership.release(self._sessions, incarnation)

    def fetch(self, table: TableCodec[T], keys: Sequence[Key]) -> dict[Key, T]:
        return self._sessions.read(lambda session: reads.fetch(session, table, keys)) if keys else {}

    def scan(
        self,
        table: TableCodec[T],
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int,
        after: Key | None = None,
    ) -> list[T]:
        return self._sessions.read(
            lambda session: reads.scan(session, table, partitions=partitions, where=where, limit=limit, after=after)
        )

    def project_usages(self, after: str, limit: int, partition: int | None = None) -> list[ProjectUsage]:
        return self._sessions.read(lambda session: usage_sums.page(session, after, limit, partition))

    def expired(self, table: TableCodec[T], partition: int, column: str, before_us: int, limit: int) -> list[T]:
        return self._sessions.read(lambda session: reads.expired(session, table, partition, column, before_us, limit))

    def packed_otherwise(
        self, table: TableCodec[Any], partition: int, heads: Mapping[str, bytes], limit: int
    ) -> list[Key]:
        return self._sessions.read(
            lambda session: packed_forms.packed_otherwise(session, table, partition, heads, limit)
        )

    def count_packed(
        self, table: TableCodec[Any], partitions: Sequence[int], heads: Mapping[str, bytes]
    ) -> tuple[int, int]:
        return self._sessions.read(lambda session: packed_forms.count_packed(session, table, partitions, heads))

    def list_instances(self, query: InstanceQuery) -> list[Instance]:
        return self._sessions.read(lambda session: lists.list_instances(session, query))

    def list_briefs(self, query: InstanceQuery) -> list[InstanceBrief]:
        return self._sessions.read(lambda session: lists.list_briefs(session, query))

    def count_instances(self, query: InstanceQuery, without: Sequence[str] = ()) -> int:
        return self._sessions.read(lambda session: lists.count_instances(session, query, without))

    def list_build_requests(self, query: InstanceQuery) -> list[BuildRequest]:
        return self._sessions.read(lambda session: lists.list_build_requests(session, query))

    def ping(self) -> None:
        self._sessions.read(lambda session: session.select("SELECT 1"))

    def close(self) -> None:
        self._sessions.close()
