"""oslo.messaging over RabbitMQ, plain, with its defaults: RPC calls and casts of a map, threads on both sides.

python -m loadtest.bus.ends.oslo_peer serve URL | drive URL SERVER
"""

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import oslo_messaging
from oslo_config import cfg

from loadtest.bus import payload
from loadtest.bus.orders import (
    CALLS,
    CASTS,
    DRAIN_DEADLINE_S,
    PACED_CALLS_PER_SECOND,
    Done,
    Order,
    paced,
    read_order,
    to_line,
)

TOPIC, SERVER = "bench", "server"
TIMEOUT_S = 60
CAST_THREADS = 8


class Served:
    """The server's methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._casts = 0

    def echo(self, context: Any, instance: dict[str, Any]) -> dict[str, Any]:
        """The same instance."""
        return instance

    def note(self, context: Any, instance: dict[str, Any]) -> None:
        """Count a cast."""
        with self._lock:
            self._casts += 1

    def count(self, context: Any) -> int:
        """How many casts arrived."""
        return self._casts


def serve(url: str) -> None:
    """Serve for ever."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    target = oslo_messaging.Target(topic=TOPIC, server=SERVER)
    server = oslo_messaging.get_rpc_server(transport, target, [Served()], executor="threading")
    server.start()
    print(SERVER, flush=True)
    server.wait()


class Client:
    """Threads that call or cast."""

    def __init__(self, url: str, server: str) -> None:
        transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
        target = oslo_messaging.Target(topic=TOPIC)
        self._rpc = oslo_messaging.get_rpc_client(transport, target, timeout=TIMEOUT_S).prepare(server=server)

    def do(self, order: Order) -> Done:
        """Carry out one order."""
        instance = payload.make(order.payload)
        if order.kind == CALLS:
            return self._calls(instance, order)
        if order.kind == CASTS:
            return self._casts(instance, order)
        return self._paced(instance, order)

    def _many(self, work: Any, threads: int, end: float) -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda _: work(end), range(threads)))

    def _calls(self, instance: dict[str, Any], order: Order) -> Done:
        def call_until(end: float) -> int:
            count = 0
            while time.monotonic() < end:
                if self._rpc.call({}, "echo", instance=instance)["uuid"] != instance["uuid"]:
                    raise RuntimeError("wrong echo")
                count += 1
            return count

        started = time.monotonic()
        count = self._many(call_until, order.in_flight, started + order.seconds)
        return Done(count, time.monotonic() - started)

    def _casts(self, instance: dict[str, Any], order: Order) -> Done:
        def cast_until(end: float) -> int:
            count = 0
            while time.monotonic() < end:
                self._rpc.cast({}, "note", instance=instance)
                count += 1
            return count

        before = self._rpc.call({}, "count")
        started = time.monotonic()
        count = self._many(cast_until, CAST_THREADS, started + order.seconds)
        while (received := self._rpc.call({}, "count") - before) < count:
            if time.monotonic() > started + DRAIN_DEADLINE_S:
                raise RuntimeError(f"{received} of {count} casts arrived")
            time.sleep(0.005)
        return Done(count, time.monotonic() - started)

    def _paced(self, instance: dict[str, Any], order: Order) -> Done:
        started = time.monotonic()
        taken = []
        for number in range(int(order.seconds * PACED_CALLS_PER_SECOND)):
            time.sleep(max(0.0, started + number / PACED_CALLS_PER_SECOND - time.monotonic()))
            sent = time.monotonic()
            self._rpc.call({}, "echo", instance=instance)
            taken.append(time.monotonic() - sent)
        return paced(taken, time.monotonic() - started)


def main() -> None:
    """Serve, or drive the server named."""
    logging.disable(logging.WARNING)  # its warnings of full pools and growing queues, by the hundred
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
        return
    client = Client(sys.argv[2], sys.argv[3])
    print("ready", flush=True)
    for line in sys.stdin:
        print(to_line(client.do(read_order(line))), flush=True)


if __name__ == "__main__":
    main()
