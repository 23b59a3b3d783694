"""A well-behaved peer that calls at a steady rate and measures: `... neighbour KEYS ADDRESS`, then SECONDS a line."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from tests.fuzz.bus import wire  # noqa: E402
from zcompute.bus import BusError, Endpoint, Identity, Link  # noqa: E402

CALLS_PER_SECOND = 200
CALL_TIMEOUT_MS = 5_000


def measure(link: Link, seconds: float) -> dict[str, float]:
    """Milliseconds of the calls of so many seconds; each is due at its own time, whatever the ones before took."""
    took_ms: list[float] = []
    failed = 0

    def ask(due: float) -> None:
        nonlocal failed
        try:
            link.call(wire.SAY, wire.Ask("fine"), timeout_ms=CALL_TIMEOUT_MS)
            took_ms.append((time.monotonic() - due) * 1000)
        except BusError:
            failed += 1

    started = time.monotonic()
    asked = []
    for number in range(int(seconds * CALLS_PER_SECOND)):
        due = started + number / CALLS_PER_SECOND
        gevent.sleep(max(0.0, due - time.monotonic()))
        asked.append(gevent.spawn(ask, due))
    gevent.joinall(asked)
    took_ms.sort()
    at = lambda share: took_ms[min(len(took_ms) - 1, int(len(took_ms) * share))] if took_ms else float("inf")  # noqa: E731
    return {"p50_ms": at(0.5), "p99_ms": at(0.99), "calls": len(took_ms), "failed": failed}


def main() -> None:
    """Answers each line with what was measured."""
    keys = msgspec.json.decode(sys.argv[1], type=wire.Keys)
    mine = keys.neighbour
    identity = Identity("compute", wire.CELL, mine.name, "1.0", frozenset(), mine.public, mine.secret)
    link = Endpoint(identity).dial(sys.argv[2], keys.server.public)
    wire.answer(up=link.wait_up(10_000))
    for line in FileObject(sys.stdin.fileno(), "rb", close=False):
        wire.answer(**measure(link, float(line)), link_number=link.core.link_number)


main()
