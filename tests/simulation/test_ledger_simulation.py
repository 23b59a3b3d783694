"""Conductors that start, stop, freeze and die at random, on a database that loses connections at random.

The database itself refuses any write of a partition from another lane than its own. The model checks the rest: each
operation takes effect once, what was acknowledged stays, and a read never shows less than was acknowledged before it
began, whoever answers it. Each operation tells of itself in a notification: exactly one, numbered without gaps in the
order in which the operations took effect, whoever carried them out.
"""

import random
from typing import Any

import gevent
import msgspec
import pytest

from tests.unit.conductor.ledger_fake import BUSY, LOST_AFTER, LOST_BEFORE, FakeDatabase, FakeStore
from tests.unit.conductor.ledger_world import INSTANCES, instance, wait_for
from zcompute.bus.errors import Busy, DeadlineExceeded, InvalidRequest, NotOwner
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LeaseSettings, LedgerLimits, LifeSettings
from zcompute.objects.base import unpack
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.notification import Notification
from zcompute.objects.partition import partition_of

SETTINGS = LifeSettings(
    map_poll_ms=30,
    stop_ms_max=500,
    ledger=LedgerLimits(retry_ms_min=1, retry_ms_max=5, lane_retry_s_max=5.0, cache_rows_max=20, batch_rows_max=7),
    lease=LeaseSettings(beat_ms=10, hub_tick_ms=5, hub_late_ms_max=1000, lease_ms=150, round_trip_ms_max=60),
)
OPERATIONS = 60


class Simulation:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.database = FakeDatabase()
        self.lives: dict[str, Incarnation] = {}
        self.stores: dict[str, FakeStore] = {}
        self.running: list[gevent.Greenlet[..., Any]] = []
        self.started = 0
        self.uuids = [f"00000000-0000-4000-8000-{n:012d}" for n in range(5)]
        self.acknowledged = dict.fromkeys(self.uuids, 0)
        self.refused = 0
        self.frozen: set[str] = set()

    # -- conductors ---------------------------------------------------------------------------------------------

    def pause(self, name: str) -> None:
        """A round trip; of a frozen conductor none ends."""
        gevent.sleep(self.dice.choice([0, 0, 0, 0.0005, 0.002]))
        while name in self.frozen:
            gevent.sleep(0.001)

    def start(self) -> None:
        self.started += 1
        name = f"s{self.started}"
        store = self.stores[name] = FakeStore(self.database, lambda: self.pause(name))
        life = self.lives[name] = Incarnation(store, "c1", name, "", settings=SETTINGS, probe=lambda *_: False)
        self.running.append(gevent.spawn(life.run))

    def living(self) -> list[str]:
        return [name for name, life in self.lives.items() if not life.reason]

    def disturb(self) -> None:
        """One thing goes wrong."""
        name = self.dice.choice(self.living() or ["s1"])
        lanes = list(self.stores[name].lane_connections.values()) if name in self.stores else []
        what = self.dice.choice(["lost", "lost", "busy", "freeze", "stop", "end", "down", "newcomer"])
        if what == "lost" and lanes:
            self.dice.choice(lanes).faults.extend(self.dice.choices([LOST_AFTER, LOST_BEFORE, ""], k=3))
        elif what == "busy" and lanes:
            self.dice.choice(lanes).faults.append(BUSY)
        elif what == "freeze":
            self.freeze(name)
        elif what == "stop":
            self.lives[name].stop(300)
        elif what == "end":
            self.lives[name]._end("killed by the simulation")
        elif what == "down":
            self.database.down = True
            gevent.sleep(0.05)
            self.database.down = False
        while len(self.living()) < 2 or (what == "newcomer" and len(self.living()) < 4):
            self.start()
            what = ""

    def freeze(self, name: str) -> None:
        """Its beats stop and nothing of the database reaches it, while its memory goes on deciding; a peer takes
        over; then all goes on."""
        life = self.lives[name]
        self.frozen.add(name)
        if life._beats is not None:
            life._beats._stop = True
        gevent.sleep(self.dice.choice([0.05, 0.4]))
        self.frozen.discard(name)

    # -- clients ------------------------------------------------------------------------------------------------

    def ask(self, uuid: str, decide: Any) -> Any:
        partition = partition_of(uuid)
        while True:
            for life in [life for life in self.lives.values() if life.ledger.owns(partition)]:
                try:
                    return life.ledger.commit(partition, [(INSTANCES, (uuid,))], decide, timeout_ms=200)
                except (NotOwner, DeadlineExceeded, Busy):
                    pass
                except InvalidRequest:
                    self.refused += 1
                    raise
            gevent.sleep(0.001)

    def write(self, client: str, uuid: str) -> None:
        for operation in range(1, OPERATIONS + 1):
            if self.dice.random() < 0.05:
                with pytest.raises(InvalidRequest):
                    self.ask(uuid, self.spoil(uuid))
            count = self.ask(uuid, self.once(client, uuid, operation))
            self.acknowledged[uuid] = max(self.acknowledged[uuid], count)

    def read(self, uuid: str) -> None:
        while True:
            least = self.acknowledged[uuid]
            row = self.ask(uuid, lambda change: change.get(INSTANCES, (uuid,)))
            assert (row.decided if row is not None else 0) >= least, "a read showed less than was acknowledged"
            gevent.sleep(0.001)

    @staticmethod
    def once(client: str, uuid: str, operation: int) -> Any:
        def decide(change: Change) -> int:
            former: Instance = change.get(INSTANCES, (uuid,)) or instance(uuid)
            done = former.spec.metadata
            if int(done.get(client, "0")) >= operation:
                return former.decided
            spec = ServerSpec(metadata={**done, client: str(operation)})
            change.put(INSTANCES, msgspec.structs.replace(former, spec=spec, decided=former.decided + 1))
            change.notify(
                Notification(
                    event_type="instance.update",
                    publisher_id="c1",
                    instance_uuid=uuid,
                    request_id=f"{client}/{operation}/{former.decided + 1}",
                )
            )
            return former.decided + 1

        return decide

    @staticmethod
    def spoil(uuid: str) -> Any:
        def decide(change: Change) -> None:
            former: Instance = change.get(INSTANCES, (uuid,)) or instance(uuid)
            change.put(INSTANCES, msgspec.structs.replace(former, name="x" * 300, decided=former.decided + 1000))
            change.notify(Notification(event_type="never", publisher_id="c1", instance_uuid=uuid))

        return decide


def check_notifications(simulation: Simulation) -> None:
    """One for each operation, no more; gapless by partition, in the order of the operations."""
    rows = simulation.database.tables["notifications"]
    numbers: dict[int, list[int]] = {}
    causes: dict[str, list[str]] = {uuid: [] for uuid in simulation.uuids}
    for partition, n in sorted(rows):
        numbers.setdefault(partition, []).append(n)
        body = unpack(rows[(partition, n)][5], Notification)
        assert body.event_type == "instance.update"
        causes[body.instance_uuid].append(body.request_id)
    for partition, given in numbers.items():
        assert given == list(range(1, simulation.database.last_n[partition] + 1)), "a gap"
    for told in causes.values():
        decided = [int(cause.rpartition("/")[2]) for cause in told]
        assert decided == list(range(1, 3 * OPERATIONS + 1)), "lost, repeated or out of order"
        assert len({cause.rpartition("/")[0] for cause in told}) == 3 * OPERATIONS, "an operation told twice"


@pytest.mark.parametrize("seed", range(8))
def test_each_operation_takes_effect_once_and_no_read_goes_back(seed: int) -> None:
    simulation = Simulation(seed)
    for _ in range(3):
        simulation.start()
    writers = [gevent.spawn(simulation.write, f"c{n}", uuid) for uuid in simulation.uuids for n in range(3)]
    readers = [gevent.spawn(simulation.read, uuid) for uuid in simulation.uuids]
    for _ in range(60):
        if all(writer.ready() for writer in writers):
            break
        simulation.disturb()
        gevent.sleep(0.02)
    simulation.database.down = False
    gevent.joinall(writers, timeout=20)
    for writer in writers:
        assert writer.ready(), "a writer hangs"
        writer.get()
    for reader in readers:
        assert not reader.ready(), reader.exception
    gevent.killall(readers)
    for uuid in simulation.uuids:
        row = simulation.database.row(INSTANCES, (uuid,))
        assert row.spec.metadata == {f"c{n}": str(OPERATIONS) for n in range(3)}
        assert row.decided == row.revision == simulation.acknowledged[uuid] == 3 * OPERATIONS
    check_notifications(simulation)
    for name in simulation.living():
        simulation.lives[name].stop(500)
    gevent.joinall(simulation.running, timeout=5)
    wait_for(lambda: all(greenlet.ready() for greenlet in simulation.running))
    reasons = {life.reason for life in simulation.lives.values()}
    assert not [reason for reason in reasons if "another row" in reason or "failed:" in reason], reasons
