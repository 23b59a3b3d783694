"""The Store: all that conductors ask of a database. Drivers: ``native`` and ``portable``.

Times are the primary's UTC microseconds. A Store is used by many greenlets; a LaneConnection by one at a time; a
Beater by one native thread.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from zcompute.db.batch import Batch
from zcompute.db.tables import Key, TableCodec
from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.instance import Instance
from zcompute.objects.messages.instances import InstanceBrief, InstanceQuery
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap
from zcompute.objects.quota import ProjectUsage

if TYPE_CHECKING:  # a view reads by modules that know the limits below
    from zcompute.db.view import View

T = TypeVar("T", bound=VersionedObject)
R = TypeVar("R")

KIND_MARIADB = "mariadb"
KIND_SQLITE = "sqlite"
BEAT_LOCK = "zcompute.beat."  # and the incarnation: the lock of the session in which it beats

READERS_MAX = 8  # for what conductors decide upon
CLIENT_READERS_MAX = 8  # for clients, where no replica takes their reads
SCAN_ROWS_MAX = 10_000


class ConductorRow(msgspec.Struct, frozen=True):
    """A conductor as the database knows it. ``started_at_us`` is the primary's, set at registration."""

    service_id: str
    incarnation: str
    address: str
    public_key: str = ""
    started_at_us: int = 0
    alive: bool = True


class LaneRow(msgspec.Struct, frozen=True):
    """A writer lane: whose it is, and whether it may still write."""

    lane_id: int
    incarnation: str
    service_id: str
    alive: bool


class PartitionRow(msgspec.Struct, frozen=True):
    """Which lane a partition is on, since which map version, and the number of its last notification."""

    partition_id: int
    lane_id: int | None
    owner_epoch: int
    last_n: int = 0


class ToldRow(msgspec.Struct, frozen=True):
    """What a partition has told: its ``last_n``, and of the notifications that are kept the first n, the last n, and
    how many there are (all 0 when none is kept). Without gaps, ``kept`` is last - first + 1 and last is last_n."""

    partition_id: int
    last_n: int
    first: int = 0
    last: int = 0
    kept: int = 0


class MapRows(msgspec.Struct, frozen=True):
    """Who owns what: partitions of one map version; lanes and conductors may be newer than it."""

    cell: str
    map_version: int
    term: int
    partitions: list[PartitionRow]
    lanes: dict[int, LaneRow]
    conductors: dict[str, ConductorRow]
    release: str = ""  # the cell's committed release level: stored objects have its form

    def partitions_of(self, lane_ids: Sequence[int]) -> dict[int, int]:
        """The partitions on these lanes, with their owner_epoch."""
        mine = set(lane_ids)
        return {row.partition_id: row.owner_epoch for row in self.partitions if row.lane_id in mine}

    def ownerless(self) -> list[int]:
        """The partitions whose lane is dead or none: take_over takes them."""
        alive = {lane.lane_id for lane in self.lanes.values() if lane.alive}
        return [row.partition_id for row in self.partitions if row.lane_id not in alive]

    def partition_map(self) -> PartitionMap:
        """As it is pushed to everyone. A dead owner stays named until somebody has taken over."""
        owners, epochs = [""] * PARTITIONS, [0] * PARTITIONS
        for row in self.partitions:
            lane = None if row.lane_id is None else self.lanes.get(row.lane_id)
            owners[row.partition_id] = "" if lane is None else lane.service_id
            epochs[row.partition_id] = row.owner_epoch
        living = {
            row.service_id: ConductorInfo(
                service_id=row.service_id,
                incarnation=row.incarnation,
                address=row.address,
                public_key=row.public_key,
            )
            for row in self.conductors.values()
            if row.alive
        }
        return PartitionMap(
            cell=self.cell,
            version=self.map_version,
            term=self.term,
            owners=owners,
            epochs=epochs,
            conductors=living,
        )


class LaneConnection(Protocol):
    """The one connection of a writer lane. Opened at the first use; never shared by two greenlets at once."""

    def commit(self, batch: Batch) -> None:
        """Commit the batch, durably. Returns = committed.

        Raises Fenced, AlreadyApplied, GuardFailed, BadRow, ReceiverDead (rolled back for certain, but for
        AlreadyApplied), DatabaseBusy (rolled back; send it again later), ConnectionLost (outcome unknown: reconnect
        and commit the same Batch object again).
        """

    def reconnect(self, deadline_ms: int) -> None:
        """End the former connection at the server, then open a new one.

        Raises ConnectionLost when the server is not there within the deadline.
        """

    def close(self) -> None:
        """Close the connection. Nothing is committed."""


class Beater(Protocol):
    """Raises one incarnation's beat counter; made for a native thread that gevent knows nothing of."""

    def beat(self) -> bool:
        """True when the row really changed. False: no connection, too slow, or the row is gone. Never raises."""

    def close(self) -> None:
        """Close the connection."""


class Store(Protocol):
    """One database of a cell or of the root. ``kind`` is that of its server: KIND_MARIADB or KIND_SQLITE."""

    kind: str
    url: str

    def now_us(self) -> int:
        """The primary's UTC time."""

    def register(self, conductor: ConductorRow, lanes: int) -> list[int]:
        """Enter a new incarnation with its beat and ``lanes`` living lanes; returns the lanes' ids.

        The lanes of older incarnations of the same service are set dead (after a batch in flight has ended); their
        partitions stay on them until somebody takes over. The map's version rises, as it names the conductor.
        Repeated for the same incarnation it changes nothing and returns the same lanes.
        """

    def open_lane(self, lane_id: int, term: int) -> LaneConnection:
        """The lane's connection; connects at its first use. ``term`` is the one its batches carry."""

    def open_beater(self, incarnation: str) -> Beater:
        """The beater of an incarnation."""

    def read_beats(self) -> dict[str, int]:
        """The beat counter of every incarnation that has one."""

    def attended(self, incarnations: Sequence[str]) -> set[str]:
        """Those of them that beat in a session which is alive at the server; none where the server cannot tell."""

    def read_map(self) -> MapRows:
        """The partition map with lanes and conductors."""

    def read_told(self) -> list[ToldRow]:
        """What every partition has told, as of one moment. Reads every notification's key: for audits."""

    def read_schema(self) -> list[str]:
        """The revisions of the schema at which the database is: the newest of each chain."""

    def take_over(
        self, dead: Sequence[str], lanes: Sequence[int], term: int, partitions: Sequence[int] | None = None
    ) -> int:
        """In one transaction: the lanes of ``dead`` (incarnations) die, what they or nobody had goes to ``lanes``.

        ``partitions`` limits what is taken. Waits for batches in flight on the dying lanes, and kills their
        connections when they do not end. Returns the map's version: raised by one, or as it was when nothing was
        taken and nobody ended. Raises Fenced when one of ``lanes`` is dead or the term is not the cell's, DatabaseBusy.
        """

    def readdress(self, service_id: str, incarnation: str, address: str, public_key: str) -> int:
        """Where a living incarnation listens from now on, and with which key; returns the map's version, raised by one.

        Raises Fenced when the incarnation is not alive any more, DatabaseBusy.
        """

    def release(self, incarnation: str) -> None:
        """The planned end of an incarnation: lanes dead, conductor not alive, beat gone; the map's version rises."""

    def fetch(self, table: TableCodec[T], keys: Sequence[Key]) -> dict[Key, T]:
        """The rows with these keys; those that are not there are not in the answer."""

    def scan(
        self,
        table: TableCodec[T],
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int,
        after: Key | None = None,
    ) -> list[T]:
        """A page in the order of the key: rows of ``partitions`` whose columns equal ``where``, behind ``after``.

        In ``where`` None means NULL and a list any of its values. At most SCAN_ROWS_MAX rows.
        """

    def project_usages(self, after: str, limit: int, partition: int | None = None) -> list[ProjectUsage]:
        """A page of the projects (of a partition) that have usage rows, with their sums, in order behind ``after``."""

    def expired(self, table: TableCodec[T], partition: int, column: str, before_us: int, limit: int) -> list[T]:
        """Rows of one partition whose ``column``, a time, is before this one, oldest first; NULL never is.

        There is an index for (partition_id, column): what is kept is not read. At most SCAN_ROWS_MAX rows.
        """

    def packed_otherwise(
        self, table: TableCodec[Any], partition: int, heads: Mapping[str, bytes], limit: int
    ) -> list[Key]:
        """Keys of rows of which a packed column does not begin with its bytes in ``heads`` (NULL may be)."""

    def count_packed(
        self, table: TableCodec[Any], partitions: Sequence[int], heads: Mapping[str, bytes]
    ) -> tuple[int, int]:
        """How many rows these partitions have, and of how many a packed column begins otherwise. Reads them all."""

    def list_instances(self, query: InstanceQuery) -> list[Instance]:
        """A page of instances in the query's order, by its filters. Raises ValueError for a sort key that there is
        not."""

    def list_briefs(self, query: InstanceQuery) -> list[InstanceBrief]:
        """The same page, of each row no more than InstanceBrief has. Raises the same."""

    def count_instances(self, query: InstanceQuery, without: Sequence[str] = ()) -> int:
        """How many instances the query's filters let through, its marker and limit aside, but for those named."""

    def list_build_requests(self, query: InstanceQuery) -> list[BuildRequest]:
        """A page of build requests, in the same order and by the same filters: each is taken for the instance that it
        will be (zcompute.objects.server_list.instance_of). Raises DatabaseBusy where there are too many to choose
        from."""

    def read_until(self, ends_at_s: float, work: "Callable[[View], R]") -> R:
        """Run a client's read, on connections that nothing else uses: not begun once ``ends_at_s`` (time.monotonic())
        has passed, and ended by then, at the server too. Raises DatabaseBusy in both cases, ConnectionLost."""

    def ping(self) -> None:
        """A round trip. Raises ConnectionLost or DatabaseBusy."""

    def close(self) -> None:
        """Close all connections; what is in flight fails."""
