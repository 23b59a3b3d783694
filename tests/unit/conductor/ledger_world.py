"""A ledger with one lane on the fake database, without a life round it; and the objects that tests write."""

import time
from collections.abc import Callable
from typing import Any

import gevent
import msgspec

from tests.unit.conductor.ledger_fake import FakeDatabase, FakeLane, FakeStore
from zcompute.conductor.lane import Lane
from zcompute.conductor.ledger import Change, Ledger
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.store import ConductorRow
from zcompute.db.tables import FLAVORS, INSTANCES
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.partition import GLOBAL_KEY, partition_of

GLOBAL = partition_of(GLOBAL_KEY)
TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)


def flavor(flavorid: str, **fields: Any) -> Flavor:
    return msgspec.structs.replace(TINY, flavorid=flavorid, **fields)


def instance(uuid: str, **fields: Any) -> Instance:
    return Instance(uuid=uuid, project_id="p", user_id="u", name="n", flavor=TINY, spec=ServerSpec(), **fields)


class World:
    """One incarnation's ledger and lane; all partitions are on the lane."""

    def __init__(self, limits: LedgerLimits | None = None, database: FakeDatabase | None = None) -> None:
        self.limits = limits or LedgerLimits(retry_ms_min=1, retry_ms_max=5, lane_retry_s_max=2.0)
        self.store = FakeStore(database)
        self.database = self.store.database
        (self.lane_id,) = self.store.register(ConductorRow("s1", "i1", "tcp://127.0.0.1:1"), 1)
        self.database.kill("", [self.lane_id])
        self.ledger = Ledger(self.store, "c1", self.limits, lambda: time.time_ns() // 1000)
        self.reason = ""
        self.lane = Lane(
            self.lane_id,
            1,
            self.store.open_lane(self.lane_id, 1),
            self.limits,
            settled=self.ledger.settled,
            undo=self.ledger.undo,
            fail=self.end,
        )
        self.greenlets = [gevent.spawn(self.lane.run), gevent.spawn(self.ledger.run_loader)]
        self.lane.barrier().wait(1000)
        last_n = self.database.last_n
        self.ledger.gain((p, epoch, self.lane, last_n[p]) for p, (_, epoch) in self.database.partitions.items())

    @property
    def connection(self) -> FakeLane:
        return self.store.lane_connections[self.lane_id]

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.ledger.end(reason, [self.lane])

    def close(self) -> None:
        gevent.killall(self.greenlets)

    def flavor_keys(self, *ids: str) -> list[Any]:
        return [(FLAVORS, (flavorid,)) for flavorid in ids]

    def put_flavor(self, flavorid: str, **fields: Any) -> Callable[[Change], Flavor]:
        """Insert it, or change these fields of it."""

        def decide(change: Change) -> Flavor:
            former = change.get(FLAVORS, (flavorid,))
            new = flavor(flavorid, **fields) if former is None else msgspec.structs.replace(former, **fields)
            change.put(FLAVORS, new)
            return new

        return decide

    def add_ram(self, flavorid: str, amount: int = 1) -> Callable[[Change], int]:
        def decide(change: Change) -> int:
            former = change.get(FLAVORS, (flavorid,)) or flavor(flavorid, memory_mb=0)
            new = msgspec.structs.replace(former, memory_mb=former.memory_mb + amount)
            change.put(FLAVORS, new)
            return new.memory_mb

        return decide

    def commit(self, flavorid: str, decide: Callable[[Change], Any], timeout_ms: int = 2000) -> Any:
        return self.ledger.commit(GLOBAL, self.flavor_keys(flavorid), decide, timeout_ms=timeout_ms)

    def submit(self, flavorid: str, decide: Callable[[Change], Any]) -> Any:
        return self.ledger.submit(GLOBAL, self.flavor_keys(flavorid), decide)

    def stored(self, flavorid: str) -> Flavor | None:
        found: Flavor | None = self.database.row(FLAVORS, (flavorid,))
        return found


def wait_for(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Until the condition holds; fails at the deadline."""
    ends_at_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at_s, "the condition did not come true"
        gevent.sleep(0.002)


__all__ = ["FLAVORS", "GLOBAL", "INSTANCES", "World", "flavor", "instance", "wait_for"]
