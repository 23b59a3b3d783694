"""What a conductor is doing with its cell's changes, as ``conductor.stat`` tells operators.

Ages and durations are whole milliseconds of the conductor's own monotonic clock unless said otherwise; shares are
parts of the time of the window that was asked for: 1.0 is all of it.
"""

import msgspec

WINDOW_S_MAX = 60
STATE_READY = "ready"
STATE_BEGINNING = "beginning"


class ConductorStatRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``window_s``: over how many of the last seconds shares and medians are taken (WINDOW_S_MAX at most)."""

    window_s: int = 30


class ConductorLaneStat(msgspec.Struct, kw_only=True):
    """One writer lane. Counters are of this incarnation; the last five are of its last batches, 256 at most."""

    lane: int  # its row in the table lanes
    number: int  # of this conductor's lanes, from 1
    partitions: int = 0
    queued_decisions: int = 0  # decided, not in a batch yet
    queued_rows: int = 0
    queued_bytes: int = 0
    oldest_ms: int = 0  # since the oldest of its changes was asked for, the one in flight included
    flying_decisions: int = 0  # in the batch that is at the database
    flying_ms: int = 0  # how long that batch is there
    trying_ms: int = 0  # for how long the database has not taken it: lost connection, or locks
    batches: int = 0
    rows: int = 0
    decisions: int = 0
    retries: int = 0
    reconnects: int = 0
    commit_ms_sum: int = 0
    commit_share: float = 0.0  # of the window: with a batch at the database
    commits_by_ms: list[int] = msgspec.field(default_factory=list)  # batches by COMMIT_MS_BOUNDS, then longer ones
    batch_rows_p50: int = 0
    batch_decisions_p50: int = 0
    commit_ms_p50: float = 0.0
    commit_ms_p99: float = 0.0
    batches_seen: int = 0  # how many these last ones are


COMMIT_MS_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class ConductorPoolStat(msgspec.Struct, kw_only=True):
    """One pool of the bus' workers: what is asked of the conductor and not begun."""

    pool: str
    workers_max: int
    running: int = 0
    queued: int = 0
    oldest_ms: int = 0


class ConductorReplicaStat(msgspec.Struct, kw_only=True):
    """One replica of the cell's database, as this conductor sees it. Counters are of the process' life."""

    name: str  # host:port, or the socket's path
    state: str  # new, serving, lagging, refused, away
    reason: str = ""  # why it takes no reads
    trouble: str = ""  # what is wrong with its replication, though it may be read
    since_ms: int = 0  # in this state
    behind_ms: int = 0  # for how long something has been committed that it has not applied
    age_ms: int = -1  # at most so old is what it shows; -1: not known
    in_flight: int = 0
    reads: int = 0
    waits: int = 0  # reads that had to wait for their position
    failures: int = 0  # reads that were tried again elsewhere


class ConductorReadStat(msgspec.Struct, kw_only=True):
    """The reads of clients: how many by what they need (primary, current, stale), and who served them."""

    by_need: dict[str, int] = msgspec.field(default_factory=dict)
    at_primary: dict[str, int] = msgspec.field(default_factory=dict)  # of them, those that read rows there
    confirmed: int = 0  # stale reads that missed, and asked the primary
    second_tries: int = 0
    positions: int = 0  # questions for the primary's position
    positions_shared: int = 0  # reads that they served
    replicas: list[ConductorReplicaStat] = msgspec.field(default_factory=list)


class ConductorDatabaseStat(msgspec.Struct, kw_only=True):
    """The cell's primary as this conductor sees it, and whether it holds what the durability mode promises."""

    primary: str = ""  # host:port, or the socket's path
    servers: int = 1  # configured for the cell
    term: int = 0  # 0: not looked at, as there is one server only
    durability: str = "local"
    ackers: int = -1  # replicas connected that may acknowledge; -1: not known
    ackers_known: int = 0  # configured to
    problem: str = ""  # why it is not to be used, or nothing is acknowledged


class ConductorStat(msgspec.Struct, kw_only=True):
    """One conductor."""

    service_id: str
    cell: str
    incarnation: str
    state: str  # STATE_READY, or STATE_BEGINNING
    age_ms: int = 0  # of the incarnation
    lives: int = 1  # incarnations of this process, this one included
    fellows: list[str] = msgspec.field(default_factory=list)  # every living conductor of the map, this one included
    map_version: int = 0
    partitions: int = 0
    links: int = 0
    window_ms: int = 0  # what shares and medians cover: less than was asked for, when it is younger
    cpu_share: float = 0.0  # of one core
    cpu_wait_share: float = 0.0  # ready to run, and other processes had the cores
    queue_p50: int = 0  # of the window: decisions queued, waiting for rows, and calls waiting for a worker
    oldest_ms_p50: int = 0  # of the window: the oldest of those
    cpu_ms: int = 0
    cpu_wait_ms: int = 0
    decisions: int = 0
    waiting_decisions: int = 0  # for rows that are being read
    waiting_oldest_ms: int = 0
    cached_rows: int = 0
    lease_held: bool = True
    database_lost_ms: int = 0  # how long some part has had no answer
    refused: dict[str, int] = msgspec.field(default_factory=dict)  # Busy by the limit that was reached
    lanes: list[ConductorLaneStat] = msgspec.field(default_factory=list)
    pools: list[ConductorPoolStat] = msgspec.field(default_factory=list)
    reads: ConductorReadStat = msgspec.field(default_factory=ConductorReadStat)
    database: ConductorDatabaseStat = msgspec.field(default_factory=ConductorDatabaseStat)

    @property
    def oldest_ms(self) -> int:
        """Age of the oldest change that waits here."""
        return max([self.waiting_oldest_ms, *(lane.oldest_ms for lane in self.lanes)])

    @property
    def queued(self) -> int:
        """Decisions that wait for their batch, or for rows."""
        return self.waiting_decisions + sum(lane.queued_decisions for lane in self.lanes)
