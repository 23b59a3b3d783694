"""A replica that applies late: nothing for a while, then all that it has received, again and again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gevent

from zcompute.db.private import PrivateMariaDB
from zcompute.db.private_replicas import PrivateReplicas

CATCH_UP_S = 5


@contextmanager
def late(servers: PrivateReplicas, replicas: Sequence[PrivateMariaDB], lag_s: float) -> Iterator[None]:
    """Inside, these replicas apply a change up to ``lag_s`` after they could."""
    ended: list[bool] = []
    delays = [gevent.spawn(_delay, servers, replica, lag_s, ended) for replica in replicas]
    try:
        yield
    finally:
        ended.append(True)
        gevent.joinall(delays, raise_error=True)


def _delay(servers: PrivateReplicas, replica: PrivateMariaDB, lag_s: float, ended: list[bool]) -> None:
    while not ended:
        replica.administer("STOP SLAVE SQL_THREAD")
        gevent.sleep(lag_s)
        received = servers.state(replica).received
        # Stopped again before it has applied these, it would fall ever further behind.
        replica.administer("START SLAVE SQL_THREAD", f"SELECT MASTER_GTID_WAIT('{received}', {CATCH_UP_S})")
