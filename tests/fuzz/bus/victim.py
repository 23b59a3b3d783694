"""A conductor's endpoint as services have it, with CURVE: `python -m tests.fuzz.bus.victim KEYS patient|barring`."""

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from tests.fuzz.bus import wire  # noqa: E402
from zcompute.bus import (  # noqa: E402  # noqa: E402
    Ack,
    CallContext,
    Endpoint,
    Identity,
    KeyEntry,
    Keyring,
    Limits,
    Link,
    Report,
    admission,
    envelope,
    protocol,
)

EVENT_INTERVAL_S = 0.1


class Failures(logging.Handler):
    """Keeps what was logged as an error: under bad input nothing is."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record)[:4_000])


class Taken:
    """Counts the frames that the decoder was given: what a peer sends last may be lost with its connection."""

    frames = 0

    @classmethod
    def decode(cls, frame: bytes, limits: Limits) -> list[envelope.Envelope]:
        cls.frames += 1
        return envelope.decode_frame(frame, limits)


def rss_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def serve(keys: wire.Keys, limits: Limits) -> Endpoint:
    """Everything that a peer may use."""
    ring = Keyring(
        [KeyEntry(pair.name, pair.public, "compute", wire.CELL) for pair in (keys.neighbour, *keys.attackers)]
    )
    mine = keys.server
    endpoint = Endpoint(
        Identity("conductor", wire.CELL, mine.name, "1.0", frozenset(), mine.public, mine.secret),
        keyring=ring,
        limits=limits,
    )

    def say(ask: wire.Ask, context: CallContext) -> wire.Ask:
        return ask

    def note(ask: wire.Ask, context: CallContext) -> None:
        return None

    def acknowledge(link: Link, reports: list[Report]) -> None:
        link.ack([Ack(report.key, report.seq, "applied") for report in reports])

    endpoint.serve(wire.SAY, say)
    endpoint.serve(wire.NOTE, note)
    endpoint.on_reports(acknowledge)
    return endpoint


def publish(endpoint: Endpoint) -> None:
    """News and a stream for those who asked for them, as a conductor has."""
    version = 0
    stream = endpoint.publish_stream("t", "k", roles={"compute"})
    while True:
        version += 1
        stream.append(b"x" * 100)
        endpoint.publish("map", f"k{version % 10}", version, b"x" * 100)
        gevent.sleep(EVENT_INTERVAL_S)


def main() -> None:
    """Tells its address; then its state for each line read."""
    admission.decode_frame = protocol.decode_frame = Taken.decode
    failures = Failures()
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger().addHandler(failures)
    hub = gevent.get_hub()
    hub.print_exception = lambda context, kind, value, traceback: failures.texts.append(f"hub: {kind} {value!r}")
    limits = Limits() if sys.argv[2] == "barring" else Limits(offences_burst=10**12)
    endpoint = serve(msgspec.json.decode(sys.argv[1], type=wire.Keys), limits)
    wire.answer(address=endpoint.bind("tcp://127.0.0.1:0"))
    gevent.spawn(publish, endpoint)
    for _ in FileObject(sys.stdin.fileno(), "rb", close=False):
        wire.answer(
            rss_mb=rss_mb(), failures=failures.texts[:5], failures_count=len(failures.texts), frames=Taken.frames,
            links=len(endpoint.links()),
            counters=endpoint.counters, cpu_s=sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        )  # fmt: skip


main()
