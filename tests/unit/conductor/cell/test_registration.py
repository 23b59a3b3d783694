"""What the root hears of a cell, and when."""

from types import SimpleNamespace

import pytest

from tests.unit.conductor.cell.test_hosts import host
from tests.unit.conductor.ledger_world import wait_for
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.registration import Registration
from zcompute.conductor.cell.settings import CellSettings
from zcompute.config import SchedulerConfig
from zcompute.objects.cell import CellCapacity
from zcompute.objects.errors import CellRefused
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HOST_DOWN
from zcompute.objects.partition import ConductorInfo, PartitionMap


class Root:
    """A link to a root conductor."""

    def __init__(self):
        self.peer = SimpleNamespace(role="conductor", cell="root")
        self.name, self.heard = "root-1", []

    def cast(self, method, capacity):
        self.heard.append(capacity)


class Endpoint:
    def __init__(self):
        self.roots, self.link_up = [], None

    def links(self, **_):
        return self.roots

    def on_link_up(self, callback):
        self.link_up = callback


@pytest.fixture
def world():
    made = SimpleNamespace(endpoint=Endpoint(), table=HostTable(), root=Root(), registered=[])
    made.table.hold(range(256))
    ledger = SimpleNamespace(map=PartitionMap(cell="c1"), on_map=lambda _: None)
    env = SimpleNamespace(
        endpoint=made.endpoint,
        ledger=ledger,
        cell="c1",
        service_id="c1-1",
        config=SimpleNamespace(scheduler=SchedulerConfig()),
    )
    made.env, made.refusals = env, []

    def call(key, method, request, timeout_ms):
        if made.refusals:
            raise made.refusals.pop()
        made.registered.append(request)

    settings = CellSettings(capacity_ms=60_000, capacity_ms_min=10, register_retry_ms=10)
    made.registration = Registration(env, SimpleNamespace(call=call), made.table, settings)
    made.registration.start()
    yield made
    made.registration.stop()


def test_a_root_conductor_that_is_new_hears_of_free_room_at_once(world):
    world.table.put(host())
    world.endpoint.roots = [world.root]
    world.endpoint.link_up(world.root)
    wait_for(lambda: [capacity.hosts for capacity in world.root.heard] == [1])


def test_hosts_that_come_up_are_told_at_once_and_together(world):
    world.endpoint.roots = [world.root]
    world.table.put(host("h0", state=HOST_DOWN))
    for number in range(1, 100):
        world.table.put(host(f"h{number}"))
    wait_for(lambda: world.root.heard and world.root.heard[-1].hosts == 99)
    assert len(world.root.heard) <= 2
    world.table.put(host("h0", revision=2))
    wait_for(lambda: world.root.heard[-1].hosts == 100)


def test_a_registration_that_is_refused_is_repeated_and_a_new_link_has_it_made_anew(world):
    conductors = {"a": ConductorInfo(service_id="a", incarnation="i", address="tcp://a:1")}
    world.env.ledger.map = PartitionMap(cell="c1", version=1, conductors=conductors)
    world.refusals = [CellRefused("cell c1 was deleted", cell="c1")]
    world.registration._wanted.set()
    wait_for(lambda: len(world.registered) == 1)
    assert not world.refusals
    world.endpoint.link_up(world.root)
    wait_for(lambda: len(world.registered) == 2)


def test_a_claim_is_no_news(world):
    world.endpoint.roots = [world.root]
    world.table.put(host())
    wait_for(lambda: world.root.heard)
    told = len(world.root.heard)
    for revision in range(2, 10):
        world.table.put(host(used=Amounts(memory_mb=revision), revision=revision))
    assert not world.registration._news.is_set()
    assert len(world.root.heard) == told
    assert isinstance(world.root.heard[0], CellCapacity)
