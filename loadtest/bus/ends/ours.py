"""zcompute.bus as its users have it: typed requests and replies, roles checked, versions, deadlines, limits, CURVE.

python -m loadtest.bus.ends.ours serve KEYS | drive KEYS ADDRESS        KEYS: JSON, empty strings for plain
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402

from loadtest.bus import payload  # noqa: E402
from loadtest.bus.orders import (  # noqa: E402
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
from zcompute.bus import Busy, CallContext, Endpoint, Identity, KeyEntry, Keyring, Link  # noqa: E402

TIMEOUT_MS = 30_000
LINK_UP_MS = 10_000
CASTS_PER_TURN = 256
BUSY_PAUSE_S = 0.001
Big = msgspec.defstruct("Big", [(name, type(value)) for name, value in payload.big().items()])
Small = msgspec.defstruct("Small", [(name, type(value)) for name, value in payload.small().items()])
STRUCTS: dict[str, type[msgspec.Struct]] = {payload.BIG: Big, payload.SMALL: Small}


class Nothing(msgspec.Struct):
    """A request that says nothing."""


class Count(msgspec.Struct):
    """How many casts arrived."""

    casts: int


@dataclass(frozen=True)
class Method:
    """A method of the benchmark's interface."""

    name: str
    request: type[Any]
    reply: type[Any] | None
    interface: str = "bench"
    version: tuple[int, int] = (1, 0)
    roles: frozenset[str] = frozenset({"compute"})
    pool: str = "calls"
    idempotent: bool = False


ECHO = {name: Method(f"echo_{name}", struct, struct) for name, struct in STRUCTS.items()}
NOTE = {name: Method(f"note_{name}", struct, None) for name, struct in STRUCTS.items()}
COUNT = Method("count", Nothing, Count)


@dataclass(frozen=True)
class Keys:
    """Both sides' CURVE keys, "" for none."""

    server_public: str = ""
    server_secret: str = ""
    client_public: str = ""
    client_secret: str = ""


def serve(keys: Keys) -> None:
    """Echo calls, count casts."""
    keyring = None
    if keys.server_secret:
        keyring = Keyring([KeyEntry("client", keys.client_public, "compute", "c1")])
    identity = Identity("conductor", "c1", "server", public_key=keys.server_public, secret_key=keys.server_secret)
    endpoint = Endpoint(identity, keyring=keyring)
    seen = Count(0)

    def echo(request: msgspec.Struct, context: CallContext) -> msgspec.Struct:
        return request

    def note(request: msgspec.Struct, context: CallContext) -> None:
        seen.casts += 1

    for name in STRUCTS:
        endpoint.serve(ECHO[name], echo)
        endpoint.serve(NOTE[name], note)
    endpoint.serve(COUNT, lambda request, context: seen)
    print(endpoint.bind("tcp://127.0.0.1:0"), flush=True)
    while True:
        gevent.sleep(3600)


class Client:
    """Greenlets that call, or one that casts."""

    def __init__(self, keys: Keys, address: str) -> None:
        identity = Identity("compute", "c1", "client", public_key=keys.client_public, secret_key=keys.client_secret)
        self._endpoint = Endpoint(identity)
        self._link: Link = self._endpoint.dial(address, keys.server_public)
        if not self._link.wait_up(LINK_UP_MS):
            raise RuntimeError("no link to the server")

    def do(self, order: Order) -> Done:
        """Carry out one order."""
        request = msgspec.convert(payload.make(order.payload), STRUCTS[order.payload])
        if order.kind == CALLS:
            return self._calls(ECHO[order.payload], request, order)
        if order.kind == CASTS:
            return self._casts(NOTE[order.payload], request, order)
        return self._paced(ECHO[order.payload], request, order)

    def _calls(self, method: Method, request: msgspec.Struct, order: Order) -> Done:
        started = time.monotonic()
        end = started + order.seconds
        callers = [gevent.spawn(self._call_until, end, method, request) for _ in range(order.in_flight)]
        count = sum(caller.get() for caller in callers)
        return Done(count, time.monotonic() - started)

    def _call_until(self, end: float, method: Method, request: msgspec.Struct) -> int:
        count = 0
        call = self._link.call
        while time.monotonic() < end:
            reply = call(method, request, timeout_ms=TIMEOUT_MS)
            if reply.uuid != request.uuid:  # type: ignore[attr-defined]  # made by defstruct
                raise RuntimeError("wrong echo")
            count += 1
        return count

    def _casts(self, method: Method, request: msgspec.Struct, order: Order) -> Done:
        before = self._count()
        cast = self._link.cast
        started = time.monotonic()
        end = started + order.seconds
        count = 0
        while time.monotonic() < end:
            try:
                for _ in range(CASTS_PER_TURN):
                    cast(method, request)
                    count += 1
            except Busy:
                gevent.sleep(BUSY_PAUSE_S)
            gevent.sleep(0)
        deadline = time.monotonic() + DRAIN_DEADLINE_S
        while (received := self._count() - before) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{received} of {count} casts arrived")
            gevent.sleep(0.002)
        return Done(count, time.monotonic() - started)

    def _paced(self, method: Method, request: msgspec.Struct, order: Order) -> Done:
        started = time.monotonic()
        taken = []
        for number in range(int(order.seconds * PACED_CALLS_PER_SECOND)):
            due = started + number / PACED_CALLS_PER_SECOND
            gevent.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            self._link.call(method, request, timeout_ms=TIMEOUT_MS)
            taken.append(time.monotonic() - sent)
        return paced(taken, time.monotonic() - started)

    def _count(self) -> int:
        deadline = time.monotonic() + DRAIN_DEADLINE_S
        while True:
            try:
                return int(self._link.call(COUNT, Nothing(), timeout_ms=TIMEOUT_MS).casts)
            except Busy as busy:
                if time.monotonic() > deadline:
                    raise
                gevent.sleep(busy.details.get("retry_after_ms", 1) / 1000)


def main() -> None:
    """Serve, or drive the server at the address given."""
    keys = Keys(**json.loads(sys.argv[2]))
    if sys.argv[1] == "serve":
        serve(keys)
        return
    client = Client(keys, sys.argv[3])
    print("ready", flush=True)
    threads = gevent.get_hub().threadpool
    while line := threads.apply(sys.stdin.readline):
        print(to_line(client.do(read_order(line))), flush=True)


if __name__ == "__main__":
    main()
