"""Two conductors that hand calls on to one another, over real links, all their workers taken at the same moment."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from tests.unit.bus.conftest import Bus, connect
from zcompute.bus import Endpoint, Limits, Link
from zcompute.bus.errors import Busy, DeadlineExceeded
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.forwarding import Forwarding, ForwardSettings
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import InstanceDeleteRequest
from zcompute.objects.methods import INSTANCE_DELETE
from zcompute.objects.partition import PARTITIONS, PartitionMap

WORKERS = 4
TIMEOUT_MS = 1500
REQUEST = InstanceDeleteRequest(uuid="u", project_id="p", operation_id="o")


class Conductor:
    """Owns nothing that a client asks it for: what clients ask goes to the other one, what that one asks is done."""

    def __init__(self, bus: Bus, name: str, other: str, forwards_at_once: int, taken: "Taken") -> None:
        self.endpoint = bus.endpoint("conductor", name, limits=Limits(calls_workers=WORKERS))
        router = PartitionRouter(self.endpoint, "c1")
        router.update(PartitionMap(cell="c1", version=1, owners=[other] * PARTITIONS, epochs=[1] * PARTITIONS))
        owns_nothing = SimpleNamespace(owns=lambda _: False)
        settings = ForwardSettings(at_once_max=forwards_at_once, busy_retry_ms=10)
        self.forwarding = Forwarding(router, owns_nothing, "c1", settings)
        self.taken = taken
        self.endpoint.serve(INSTANCE_DELETE, self.delete)

    def delete(self, request: InstanceDeleteRequest, context: Any) -> Empty:
        if not self.forwarding.needed("key", context):
            return Empty()
        self.taken.one_more()
        reply: Empty = self.forwarding.call("key", INSTANCE_DELETE, request, context)
        return reply


class Taken:
    """Lets nobody go on before every worker of both conductors is taken."""

    def __init__(self) -> None:
        self.count = 0
        self.all = Event()

    def one_more(self) -> None:
        self.count += 1
        if self.count == 2 * WORKERS:
            self.all.set()
        assert self.all.wait(5)


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus()
    yield made
    made.close()


def ask(link: Link, ends_at: float) -> str:
    """One client's call, repeated while it hears Busy."""
    while True:
        try:
            link.call(INSTANCE_DELETE, REQUEST, timeout_ms=max(1, int((ends_at - time.monotonic()) * 1000)))
            return "done"
        except Busy as busy:
            gevent.sleep(busy.retry_after_ms / 1000)
        except DeadlineExceeded:
            return "late"


def outcomes(bus: Bus, forwards_at_once: int) -> list[str]:
    taken = Taken()
    first = Conductor(bus, "c1-1", "c1-2", forwards_at_once, taken)
    second = Conductor(bus, "c1-2", "c1-1", forwards_at_once, taken)
    connect(first.endpoint, second.endpoint)
    client: Endpoint = bus.endpoint("api", "api-1")
    links = [connect(conductor.endpoint, client) for conductor in (first, second)]
    ends_at = time.monotonic() + TIMEOUT_MS / 1000
    asking = [gevent.spawn(ask, link, ends_at) for link in links for _ in range(WORKERS)]
    gevent.joinall(asking, timeout=10)
    return [greenlet.value for greenlet in asking]


def test_conductors_full_of_one_anothers_calls_would_starve_without_a_limit(bus: Bus) -> None:
    assert outcomes(bus, forwards_at_once=WORKERS) == ["late"] * 2 * WORKERS


def test_with_the_limit_all_are_answered(bus: Bus) -> None:
    assert outcomes(bus, forwards_at_once=WORKERS // 2) == ["done"] * 2 * WORKERS


def test_half_of_the_workers_are_left_for_what_waits_for_nobody() -> None:
    assert ForwardSettings().at_once_max <= Limits().calls_workers // 2
