"""Lists of a cell's conductors, so many a second, evenly, as the API asks for them.

python -m loadtest.reads.lister ORDER_FILE       (a line in: which seconds; a line out: what came of it)
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from loadtest.ledger.orders import Place  # noqa: E402
from loadtest.ledger.world import CELL, instance  # noqa: E402
from zcompute.bus import Endpoint, Identity, Link  # noqa: E402
from zcompute.objects.messages.instances import InstanceQuery  # noqa: E402
from zcompute.objects.methods import INSTANCE_BRIEFS  # noqa: E402

SERVICE_ID = "reader"
PAGE = 100
IN_FLIGHT_MAX = 64
CALL_MS_MAX = 5_000
UP_S_MAX = 20.0


class Readers(msgspec.Struct):
    """Who reads, at whom."""

    public: str
    secret: str
    places: list[Place]


class Span(msgspec.Struct):
    """So many lists a second between these monotonic seconds."""

    per_second: float
    from_s: float
    ends_at_s: float


class Listed(msgspec.Struct):
    """How many were answered, and how long they took from when they were due."""

    answers: int
    p50_ms: float
    p99_ms: float


def main() -> None:
    """One span after the other, until the end of input."""
    given = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Readers)
    endpoint = Endpoint(Identity("api", CELL, SERVICE_ID, "1", frozenset(), given.public, given.secret))
    links = [endpoint.dial(place.address, place.public_key) for place in given.places]
    try:
        _wait_up(links)
        print("ready", flush=True)
        for line in FileObject(sys.stdin.buffer):
            listed = _span(links, msgspec.json.decode(line, type=Span))
            print(msgspec.json.encode(listed).decode(), flush=True)
    finally:
        endpoint.close()


def _wait_up(links: list[Link]) -> None:
    ends_at_s = time.monotonic() + UP_S_MAX
    while not all(link.up for link in links):
        if time.monotonic() > ends_at_s:
            raise SystemExit(f"expected links to all conductors within {UP_S_MAX:g} s")
        gevent.sleep(0.05)


def _span(links: list[Link], span: Span) -> Listed:
    query = InstanceQuery(project_id=instance(0, "").project_id, limit=PAGE)
    taken_ms: list[float] = []

    def ask(number: int, due_s: float) -> None:
        reply = links[number % len(links)].call(INSTANCE_BRIEFS, query, timeout_ms=CALL_MS_MAX)
        if len(reply.instances) != PAGE:
            raise SystemExit(f"expected {PAGE} servers, found {len(reply.instances)}")
        taken_ms.append((time.monotonic() - due_s) * 1000)

    pool = Pool(IN_FLIGHT_MAX)
    asked = []
    number = 0
    while (due_s := span.from_s + number / span.per_second) < span.ends_at_s:
        gevent.sleep(max(0.0, due_s - time.monotonic()))
        asked.append(pool.spawn(ask, number, due_s))
        number += 1
    gevent.joinall(asked, raise_error=True)
    taken_ms.sort()
    return Listed(len(taken_ms), taken_ms[len(taken_ms) // 2], taken_ms[len(taken_ms) * 99 // 100])


if __name__ == "__main__":
    main()
