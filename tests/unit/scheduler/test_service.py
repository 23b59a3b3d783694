"""The service over the real bus, fed and asked by a conductor of this process."""

import time

import gevent
import msgspec
import pytest

from tests.unit.scheduler.hosts import TINY, host_state
from zcompute import bus
from zcompute.config import BusConfig, Config, PeerConfig, ServiceConfig
from zcompute.objects import methods as m
from zcompute.objects.errors import SchedulerStale
from zcompute.objects.flavor import Amounts
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap
from zcompute.scheduler.service import SchedulerService

encode = msgspec.msgpack.encode


class FakeConductor:
    """Listens, pushes what it is told to, and asks."""

    def __init__(self, service_id: str) -> None:
        self.service_id = service_id
        self.endpoint = bus.Endpoint(bus.Identity(role="conductor", cell="c1", service_id=service_id))
        self.address = self.endpoint.bind("tcp://127.0.0.1:0")

    def link(self) -> bus.Link:
        ends_at_s = time.monotonic() + 5
        while not (links := self.endpoint.links(role="scheduler")):
            assert time.monotonic() < ends_at_s, "the scheduler did not dial"
            gevent.sleep(0.01)
        return links[0]

    def push_hosts(self, *names: str, partitions: range = range(PARTITIONS)) -> None:
        for name in names:
            self.endpoint.publish(m.TOPIC_HOSTS, name, 1, encode(host_state(name)))
        for partition in partitions:
            done = m.PartitionSnapshotDone(partition=partition, owner_epoch=1)
            self.endpoint.publish(m.TOPIC_PARTITIONS, str(partition), 1, encode(done))

    def select(self, **fields) -> m.SelectReply:
        request = m.SelectRequest(**({"instance_uuids": ["u1"], "amounts": TINY} | fields))
        return self.link().call(m.SELECT_DESTINATIONS, request, timeout_ms=5000)

    def select_when_fed(self) -> m.SelectReply:
        ends_at_s = time.monotonic() + 5
        while True:
            try:
                return self.select()
            except SchedulerStale:
                assert time.monotonic() < ends_at_s, "the scheduler did not take the snapshot"
                gevent.sleep(0.01)


@pytest.fixture
def conductors():
    made = [FakeConductor("c1-1"), FakeConductor("c1-2")]
    yield made
    for conductor in made:
        conductor.endpoint.close(linger_ms=0)


@pytest.fixture
def scheduler(conductors):
    service = SchedulerService(
        Config(
            service=ServiceConfig(id="c1-scheduler", cell="c1", state_dir="unused"),
            bus=BusConfig(conductors=[PeerConfig(id="c1-1", address=conductors[0].address)]),
        )
    )
    service.start()
    yield service
    service.stop()


def test_it_refuses_until_fed_then_answers(conductors, scheduler):
    first = conductors[0]
    with pytest.raises(SchedulerStale) as caught:
        first.select()
    assert caught.value.details == {"missing": PARTITIONS}
    first.link()
    first.push_hosts("h1", "h2")
    reply = first.select_when_fed()
    assert sorted(reply.hosts[0]) == ["h1", "h2"]


def test_a_request_beyond_the_limits_is_invalid(conductors, scheduler):
    with pytest.raises(bus.InvalidRequest) as caught:
        conductors[0].select(amounts=Amounts(vcpus=-1))
    assert caught.value.field == "amounts"


def test_conductors_are_learnt_from_the_map_and_feed_it_too(conductors, scheduler):
    first, second = conductors
    first.link()
    learnt = PartitionMap(
        cell="c1",
        version=2,
        conductors={
            conductor.service_id: ConductorInfo(
                service_id=conductor.service_id, incarnation="1", address=conductor.address
            )
            for conductor in conductors
        },
    )
    first.endpoint.publish(m.TOPIC_MAP, "c1", 2, encode(learnt))
    second.link()
    first.push_hosts("h1", partitions=range(128))
    second.push_hosts("h2", partitions=range(128, PARTITIONS))
    assert sorted(second.select_when_fed().hosts[0]) == ["h1", "h2"]


def test_only_conductors_may_ask():
    assert m.SELECT_DESTINATIONS.roles == frozenset({"conductor"})
