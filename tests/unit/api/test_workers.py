"""Several API processes behind one socket: they are started, revived after growing pauses, and ended."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from zcompute.api.workers import RESTART_S_MIN, Workers
from zcompute.cli.services import config_of_worker
from zcompute.config import ApiConfig, BusConfig, Config, MetricsConfig, ServiceConfig

DEADLINE_S = 20.0
ACCEPTING = (
    "import socket, sys, os; s = socket.socket(fileno=int(sys.argv[1])); s.setblocking(True)\n"
    "while True: c, _ = s.accept(); c.sendall(b'%d' % os.getpid()); c.close()"
)


def config(workers: int, listen: str = "") -> Config:
    return Config(
        service=ServiceConfig(id="api-1", cell="root", state_dir="/nowhere"), bus=BusConfig(),
        api=ApiConfig(port=0, workers=workers), metrics=MetricsConfig(listen=listen),
    )  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, "not in time"
        gevent.sleep(0.02)


def accepting(number: int, listener_fd: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", ACCEPTING, str(listener_fd)], pass_fds=[listener_fd])


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(config(2), "unused", accepting)
    made.start()
    yield made
    made.stop()


def who_answers(workers: Workers) -> int:

    with socket.create_connection(workers.address, DEADLINE_S) as client:
        return int(client.recv(64))


def test_a_stopped_worker_keeps_no_new_connection_hanging(workers: Workers) -> None:
    stopped, other = workers.pids
    subprocess.run(["kill", "-STOP", str(stopped)], check=True)
    try:
        assert {who_answers(workers) for _ in range(20)} <= {other}
    finally:
        subprocess.run(["kill", "-CONT", str(stopped)], check=True)


def test_a_worker_that_ends_is_started_anew_after_a_pause_and_the_other_serves_on(workers: Workers) -> None:
    ended, other = workers.pids
    began = time.monotonic()
    subprocess.run(["kill", "-KILL", str(ended)], check=True)
    until(lambda: ended not in workers.pids)
    assert who_answers(workers) == other
    until(lambda: len(workers.pids) == 2)
    assert time.monotonic() - began >= RESTART_S_MIN
    assert ended not in workers.pids


def test_stop_ends_every_worker_and_the_address_is_free(workers: Workers) -> None:
    pids, address = workers.pids, workers.address
    workers.stop()
    assert len(pids) == 2
    assert workers.pids == []

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 1)


@pytest.mark.parametrize(
    ("listen", "second"),
    [("", ""), ("127.0.0.1:9100", "127.0.0.1:9101"), ("127.0.0.1:0", "127.0.0.1:0"), ("unix:m.sock", "unix:m.sock.2")],
)
def test_each_worker_has_an_id_and_a_place_for_metrics_of_its_own(listen: str, second: str) -> None:
    made = config_of_worker(config(2, listen), 2)
    assert (made.service.id, made.metrics.listen) == ("api-1.2", second)
