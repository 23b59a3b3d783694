"""A flood: what the sender's queue took arrives, though the receiver is slower."""

import gevent

from tests.unit.bus.conftest import NOTE, Ask, Bus, connect, wait_until
from zcompute.bus import Busy

FLOOD = 30_000  # three times what a pool queues


def test_casts_that_were_queued_all_arrive_however_fast_they_come(bus: Bus) -> None:
    arrived: list[int] = []
    server = bus.endpoint("conductor", "server")
    server.serve(NOTE, lambda ask, context: arrived.append(ask.number))
    link = connect(server, bus.endpoint("compute", "client"))
    sent = 0
    while sent < FLOOD:
        try:
            link.cast(NOTE, Ask("flood", sent))
            sent += 1
        except Busy:
            gevent.sleep(0.001)
    wait_until(lambda: len(arrived) == FLOOD, timeout_s=20)
    assert arrived == list(range(FLOOD))
