"""Where libzmq's I/O thread runs."""

import os
from pathlib import Path

import gevent
import pytest

from tests.unit.bus.conftest import Bus, connect
from zcompute.bus.beside import CALM_LOOKS, FINDS_MAX, IoThread
from zcompute.bus.endpoint import Endpoint
from zcompute.bus.limits import Limits

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not put on processors here")
WAIT_S = 10.0
BESIDE = Limits(io_beside_share_max=0.5)
ANYWHERE = Limits(io_beside_share_max=0)


def _processors(endpoint: Endpoint) -> set[int]:
    thread = endpoint._io_thread._thread
    return os.sched_getaffinity(thread) if thread else set()


def _until_put(endpoint: Endpoint) -> set[int]:
    with gevent.Timeout(WAIT_S):
        while not endpoint._io_thread._thread or endpoint._io_thread._at < 0:
            gevent.sleep(0.01)
    return _processors(endpoint)


def test_each_io_thread_runs_on_one_processor_and_the_loop_on_any(bus: Bus) -> None:
    before = os.sched_getaffinity(0)
    server = bus.endpoint("conductor", "conductor-1", limits=BESIDE)
    client = bus.endpoint("compute", "compute-1", limits=BESIDE)
    connect(server, client)
    for endpoint in (server, client):
        assert len(_until_put(endpoint)) == 1
    assert server._io_thread._thread != client._io_thread._thread
    assert os.sched_getaffinity(0) == before


def test_an_io_thread_with_much_to_do_is_let_go_and_taken_back_when_it_rests(bus: Bus) -> None:
    endpoint = bus.endpoint("conductor", "conductor-1", limits=BESIDE)
    endpoint.bind("tcp://127.0.0.1:0")
    _until_put(endpoint)
    io_thread = endpoint._io_thread
    now = io_thread._looked_at
    io_thread._used_s -= 0.6  # as though it had worked that long in the next second
    io_thread.look(now + 1.0, 1, 0)
    assert _processors(endpoint) == os.sched_getaffinity(0)
    io_thread.tick()
    assert _processors(endpoint) == os.sched_getaffinity(0)
    io_thread._used_s -= 0.4
    io_thread.look(now + 2.0, 1, 0)
    for look in range(CALM_LOOKS):
        assert io_thread._at < 0  # not yet: it would go to and fro
        io_thread.look(now + 3.0 + look, 1, 0)
    assert len(_processors(endpoint)) == 1


def test_with_many_peers_it_runs_where_the_kernel_puts_it(bus: Bus) -> None:
    endpoint = bus.endpoint("conductor", "conductor-1", limits=BESIDE)
    endpoint.bind("tcp://127.0.0.1:0")
    _until_put(endpoint)
    io_thread = endpoint._io_thread
    now = io_thread._looked_at
    io_thread.look(now + 1.0, BESIDE.io_beside_peers_max + 1, 0)
    assert _processors(endpoint) == os.sched_getaffinity(0)
    for look in range(CALM_LOOKS + 1):
        io_thread.look(now + 2.0 + look, BESIDE.io_beside_peers_max + 1, 0)
    assert _processors(endpoint) == os.sched_getaffinity(0)


def test_while_much_is_refused_it_runs_where_the_kernel_puts_it(bus: Bus) -> None:
    endpoint = bus.endpoint("conductor", "conductor-1", limits=BESIDE)
    endpoint.bind("tcp://127.0.0.1:0")
    _until_put(endpoint)
    io_thread = endpoint._io_thread
    now = io_thread._looked_at
    io_thread.look(now + 1.0, 1, BESIDE.io_beside_refusals_max + 1)
    assert _processors(endpoint) == os.sched_getaffinity(0)
    for look in range(CALM_LOOKS):
        io_thread.look(now + 2.0 + look, 1, BESIDE.io_beside_refusals_max + 1)
    assert len(_processors(endpoint)) == 1


def test_a_thread_that_is_not_there_is_not_looked_for_without_end(bus: Bus) -> None:
    io_thread = bus.endpoint("conductor", "conductor-1", limits=BESIDE)._io_thread
    io_thread._name = "nobody"
    for look in range(FINDS_MAX + 1):
        io_thread.look(float(look), 1, 0)
    assert io_thread._processor is None


def test_told_so_it_runs_where_the_kernel_puts_it(bus: Bus) -> None:
    endpoint = bus.endpoint("conductor", "conductor-1", limits=ANYWHERE)
    endpoint.bind("tcp://127.0.0.1:0")
    for look in range(CALM_LOOKS + 2):
        endpoint._io_thread.look(float(look), 1, 0)
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    assert endpoint._io_thread._thread == 0
    assert all(os.sched_getaffinity(thread) == os.sched_getaffinity(0) for thread in threads)


def test_a_sandbox_that_forbids_it_is_no_fault(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(thread: int, processors: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    endpoint = bus.endpoint("conductor", "conductor-1", limits=BESIDE)
    endpoint.bind("tcp://127.0.0.1:0")
    _until_put(endpoint)
    io_thread: IoThread = endpoint._io_thread
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    io_thread._at = -2  # elsewhere
    io_thread.look(io_thread._looked_at + 1.0, 1, 0)
    monkeypatch.undo()
    io_thread.tick()
    assert io_thread._processor is None
