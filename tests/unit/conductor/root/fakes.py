"""In-memory stand-ins round the root role: a ledger that decides at once, an endpoint with links, a store."""

from types import SimpleNamespace

from zcompute.bus.errors import NotOwner
from zcompute.cells.choice import Wanted
from zcompute.conductor.cache import Entry
from zcompute.conductor.change import Change, Ticket
from zcompute.conductor.errors import NotLoaded
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import ServerSpec
from zcompute.objects.messages.region import ServersCreateRequest
from zcompute.objects.partition import PARTITIONS

NOW_US = 1_700_000_000_000_000
UUIDS = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(1, 20)]
TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)


class FakeLedger:
    """Owns all partitions unless told otherwise; every decision commits at once."""

    def __init__(self) -> None:
        self.rows = {}
        self.lost = set()
        self.now = NOW_US
        self.commits = 0
        self.gain_callbacks = []
        self.lose_callbacks = []
        self.fail_next = None
        self.decided_callbacks = []
        self.told = []  # notifications that committed

    def on_decided(self, callback):
        self.decided_callbacks.append(callback)

    def on_told(self, callback):
        return

    def owner_epoch(self, partition):
        return 1

    def last_n(self, partition):
        return 0

    def owns(self, partition):
        return partition not in self.lost

    def now_us(self):
        return self.now

    def on_gain(self, callback):
        self.gain_callbacks.append(callback)

    def on_lose(self, callback):
        self.lose_callbacks.append(callback)

    def submit(self, partition, keys, decide):
        if partition in self.lost:
            raise NotOwner("not here", partition=partition, map_version=1)
        ticket = Ticket(partition, keys, decide)
        named = {(table.name, key) for table, key in keys}

        def entry(rowkey):
            if rowkey not in named:
                raise NotLoaded(str(rowkey))
            row = self.rows.get(rowkey)
            return Entry(row, 0 if row is None else row.revision)

        change = Change(partition, 1, self.now, entry)
        try:
            ticket.result = decide(change)
            for callback in self.decided_callbacks:
                callback(change)
        except Exception as error:  # noqa: BLE001
            ticket.error = error
        else:
            for put in change.puts.values():
                if put.image is None:
                    self.rows.pop(put.rowkey, None)
                else:
                    self.rows[put.rowkey] = put.image
            self.commits += bool(change.puts)
            self.told += change.notifications
        failing, self.fail_next = self.fail_next, None
        ticket.finish(failing)
        return ticket

    def commit(self, partition, keys, decide, *, timeout_ms):
        return self.submit(partition, keys, decide).wait(timeout_ms)

    def get(self, table, *key):
        return self.rows.get((table.name, key))

    def all(self, table):
        return [row for (name, _), row in self.rows.items() if name == table.name]


class FakeLink:
    """A conductor of a cell; ``answers`` are taken in turn: exceptions are raised, anything else returned."""

    def __init__(self, cell, service_id="s1", answers=()):
        self.peer = SimpleNamespace(role="conductor", cell=cell, service_id=service_id, topics=frozenset())
        self.answers = list(answers)
        self.calls = []
        self.events = []

    def call(self, method, request, *, timeout_ms, request_id=None):
        self.calls.append((method.name, request))
        answer = self.answers.pop(0) if self.answers else None
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def event(self, topic, key, version, payload):
        self.events.append((topic, key, version, payload))


class FakeEndpoint:
    def __init__(self) -> None:
        self.up = []
        self.published = []
        self.link_up_callbacks = []
        self.keyring = None
        self.refused = []
        self.refusals = SimpleNamespace(count=lambda reason, peer, detail="": self.refused.append((reason, peer)))

    def links(self, *, role=None, cell=None, service_id=None):
        return [link for link in self.up if cell in (None, link.peer.cell)]

    def publish(self, topic, key, version, payload):
        self.published.append((topic, key, version))

    def publish_stream(self, topic, key, **options):
        return SimpleNamespace(topic=topic, key=key, next=options["cursor"], followers=0)

    def withdraw_stream(self, stream):
        return

    def on_link_up(self, callback):
        self.link_up_callbacks.append(callback)


class FakeStore:
    """Reads what the fake ledger committed."""

    def __init__(self, ledger):
        self.ledger = ledger

    def scan(self, table, *, partitions=None, where=None, limit, after=None):
        rows = sorted(self.ledger.all(table), key=table.key_of)
        rows = [row for row in rows if after is None or table.key_of(row) > after]
        for column, value in (where or {}).items():
            wanted = value if isinstance(value, list) else [value]
            rows = [row for row in rows if getattr(row, column) in wanted]
        return rows[:limit]

    def expired(self, table, partition, column, before_us, limit):
        rows = [row for row in self.ledger.all(table) if table.home_of(row) == partition]
        rows = [row for row in rows if (getattr(row, column) or before_us) < before_us]
        return sorted(rows, key=lambda row: getattr(row, column))[:limit]

    def fetch(self, table, keys):
        return {key: row for key in keys if (row := self.ledger.get(table, *key)) is not None}

    def read_until(self, ends_at_s, work):
        return work(self)

    def list_build_requests(self, query):
        raise NotImplementedError


class Decider:
    """Runs one pure decide function against rows, as the ledger would."""

    def __init__(self) -> None:
        self.ledger = FakeLedger()

    def __call__(self, partition, keys, decide):
        return self.ledger.commit(partition, keys, decide, timeout_ms=1000)


def choosing(*cells):
    """A chooser that gives these cells in turn, skipping those tried; then None."""
    left = list(cells)

    def choose(wanted, tried):
        assert isinstance(wanted, Wanted)
        while left:
            cell = left.pop(0)
            if cell not in tried:
                return cell
        return None

    return choose


def create_request(count=1, operation_id="op-1", digest="d", project_id="p1", name="web"):
    return ServersCreateRequest(
        operation_id=operation_id,
        digest=digest,
        project_id=project_id,
        user_id="u1",
        name=name,
        flavorid="1",
        spec=ServerSpec(image_ref="img"),
        min_count=1,
        max_count=count,
    )


def context(cell="root", service_id="api-1", role="api"):
    """What a handler is told of its caller."""
    peer = SimpleNamespace(role=role, cell=cell, service_id=service_id)
    return SimpleNamespace(peer=peer, request_id="req-1", remaining_ms=lambda: 5000)


ALL_PARTITIONS = list(range(PARTITIONS))
