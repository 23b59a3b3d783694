"""A process full of agents for loadtest.reconnect: endpoints as a compute has them, each with a key of its own.

    python -m loadtest.reconnect_agents < ORDER        (JSON; tells "up", then for each line when every link was back)

They share one libzmq context, and their ticks are slow: thousands of endpoints in one process would else measure the
agents. What brings a link back (the monitor, the hello, its back-off and jitter) is the bus' own.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import zmq  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from zcompute.bus import Endpoint, Identity, Limits, Link  # noqa: E402

# Five thousand endpoints of one process share a context, so none has an I/O thread of its own to keep beside itself.
LIMITS = Limits(tick_ms=200, events_reread_ms=1_000, io_beside_share_max=0)
IO_THREADS = 4
DIALS_PER_TURN = 10
UP_S_MAX = 120.0
POLL_S = 0.02


class Agents:
    """The agents of this process and when their links last came up."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._context: zmq.Context[Any] = zmq.Context(io_threads=IO_THREADS)
        self._context.set(zmq.MAX_SOCKETS, len(order["keys"]) * 3 + 64)
        self._endpoints: list[Endpoint] = []
        self.lost = 0
        self.up_at: dict[Link, float] = {}

    def dial(self) -> None:
        """Make them all, some at a time."""
        for index, (public, secret) in enumerate(self._order["keys"]):
            name = f"agent{self._order['first'] + index}"
            identity = Identity("compute", "c1", name, "1", frozenset(), public, secret)
            endpoint = Endpoint(identity, limits=LIMITS)
            endpoint.context = self._context
            endpoint.on_link_up(self._note_up)
            endpoint.on_link_down(self._note_down)
            endpoint.dial(self._order["address"], self._order["server_public"])
            self._endpoints.append(endpoint)
            if index % DIALS_PER_TURN == 0:
                gevent.sleep(POLL_S)

    def _note_up(self, link: Link) -> None:
        self.up_at[link] = time.monotonic()

    def _note_down(self, link: Link) -> None:
        self.lost += 1
        self.up_at.pop(link, None)

    def wait_up(self, lost: int) -> bool:
        """Until `lost` links went down since the start, and all are up."""
        deadline = time.monotonic() + UP_S_MAX
        while self.lost < lost or len(self.up_at) < len(self._endpoints):
            if time.monotonic() > deadline:
                return False
            gevent.sleep(POLL_S)
        return True


def main() -> None:
    """Read the order, connect; then for each line wait for the loss and the return of every link."""
    logging.disable(logging.WARNING)  # a line for each agent of each restart
    lines = FileObject(sys.stdin.fileno(), "rb", close=False)
    agents = Agents(json.loads(lines.readline()))
    agents.dial()
    print("up" if agents.wait_up(0) else "not all are up", flush=True)
    for _ in lines:
        lost = agents.lost
        print("ready", flush=True)
        back = agents.wait_up(lost + len(agents.up_at))
        print(json.dumps({"back": back, "up_at": sorted(agents.up_at.values())}), flush=True)


if __name__ == "__main__":
    main()
