"""zerorpc, plain, with its defaults: calls of a map; it has no casts.

python -m loadtest.bus.ends.zerorpc_peer serve | drive ADDRESS
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import zerorpc  # noqa: E402

from loadtest.bus import payload  # noqa: E402
from loadtest.bus.orders import CALLS, PACED_CALLS_PER_SECOND, Done, Order, paced, read_order, to_line  # noqa: E402

TIMEOUT_S = 60
PORTS = range(20000, 32000, 97)


class Served:
    """The server's methods."""

    def echo(self, instance: dict[str, Any]) -> dict[str, Any]:
        """The same instance."""
        return instance


def serve() -> None:
    """Serve for ever on a free port."""
    server = zerorpc.Server(Served())
    for port in PORTS:
        try:
            server.bind(f"tcp://127.0.0.1:{port}")
        except zerorpc.zmq.ZMQError:
            continue
        print(f"tcp://127.0.0.1:{port}", flush=True)
        server.run()
        return
    raise RuntimeError("no free port")


class Client:
    """Greenlets that call."""

    def __init__(self, address: str) -> None:
        self._rpc = zerorpc.Client(address, timeout=TIMEOUT_S)

    def do(self, order: Order) -> Done:
        """Carry out one order."""
        instance = payload.make(order.payload)
        started = time.monotonic()
        if order.kind == CALLS:
            end = started + order.seconds
            callers = [gevent.spawn(self._call_until, end, instance) for _ in range(order.in_flight)]
            count = sum(caller.get() for caller in callers)
            return Done(count, time.monotonic() - started)
        taken = []
        for number in range(int(order.seconds * PACED_CALLS_PER_SECOND)):
            gevent.sleep(max(0.0, started + number / PACED_CALLS_PER_SECOND - time.monotonic()))
            sent = time.monotonic()
            self._rpc.echo(instance)
            taken.append(time.monotonic() - sent)
        return paced(taken, time.monotonic() - started)

    def _call_until(self, end: float, instance: dict[str, Any]) -> int:
        count = 0
        while time.monotonic() < end:
            if self._rpc.echo(instance)["uuid"] != instance["uuid"]:
                raise RuntimeError("wrong echo")
            count += 1
        return count


def main() -> None:
    """Serve, or drive the server at the address given."""
    if sys.argv[1] == "serve":
        serve()
        return
    client = Client(sys.argv[2])
    print("ready", flush=True)
    threads = gevent.get_hub().threadpool
    while line := threads.apply(sys.stdin.readline):
        print(to_line(client.do(read_order(line))), flush=True)


if __name__ == "__main__":
    main()
