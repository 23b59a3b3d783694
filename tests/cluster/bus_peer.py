"""A peer of the bus in a process of its own, for tests that kill or stop it: `bus_peer.py CONFIG`, see `Config`."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gevent  # noqa: E402
import msgspec  # noqa: E402

from tests.cluster.bus_dialogs import (  # noqa: E402
    HOLD,
    HOLD_READ,
    PONDER,
    SAY,
    STREAM_ROLES,
    Ask,
    Config,
    Journal,
    Method,
    Outbox,
    Service,
    reports_of,
)
from zcompute.bus import BusError, Busy, Endpoint, Identity, KeyEntry, Keyring, Limits, Link  # noqa: E402

LIFE_S = 100
CROWD = 200
FLOOD = 4_000
PUBLISH_STEP_S = 0.001


def report(endpoint: Endpoint, link: Link, journal: Journal, count: int) -> None:
    """Report what an earlier life has no ack for."""
    acked = {(key, int(seq)) for key, seq in journal.lines("acked")}
    left = [report for report in reports_of(3, count) if (report.key, report.seq) not in acked]
    outbox = Outbox(endpoint, left, lambda ack: journal.write(("acked", ack.key, ack.seq)))
    gevent.spawn(outbox.run, link)


def call(link: Link, journal: Journal) -> None:
    """Ask, and wait for ever."""
    link.wait_up(5000)
    try:
        link.call(HOLD, Ask("mine"), timeout_ms=30_000)
    except BusError as error:
        journal.write(("failed", error.wire_name))


def crowd(link: Link, journal: Journal) -> None:
    """Ask more than a pool can take, again and again."""
    link.wait_up(5000)
    while True:
        try:
            link.call(HOLD_READ, Ask("crowd"), timeout_ms=30_000)
        except Busy as error:
            gevent.sleep(error.retry_after_ms / 1000)


def flood(link: Link, method: Method) -> None:
    """Ask without a pause, many times at once."""
    link.wait_up(5000)
    while True:
        try:
            link.call(method, Ask("x" * 500), timeout_ms=60_000)
        except Busy as error:
            gevent.sleep(error.retry_after_ms / 1000)


def follow(link: Link, journal: Journal) -> None:
    """Follow from the cursor that an earlier life has kept."""
    heard = [int(words[0]) + 1 for words in journal.lines("news")] + [int(words[1]) for words in journal.lines("gap")]
    link.follow("news", cursor=max(heard, default=0))


def publish(endpoint: Endpoint, journal: Journal, count: int) -> None:
    """Publish a log again from its begin, and go on where an earlier life ended."""
    stream = endpoint.publish_stream("news", roles=STREAM_ROLES)
    for number in range(len(journal.lines("published"))):
        stream.append(str(number).encode())
    while stream.next < count:
        journal.write(("published", stream.next))  # durable before it is told
        stream.append(str(stream.next).encode())
        gevent.sleep(PUBLISH_STEP_S)


def main() -> None:
    """Runs until it is killed, LIFE_S at most."""
    config = msgspec.json.decode(sys.argv[1], type=Config)
    endpoint = Endpoint(
        Identity(config.role, "c1", config.service_id, "1", public_key=config.public, secret_key=config.secret),
        keyring=Keyring([KeyEntry(name, public, role, "c1") for name, public, role in config.keys]),
        limits=Limits(**config.limits),
        topics=["state"],
    )
    journal = Journal(Path(config.journal))
    Service(endpoint, journal)
    if not config.server_key:
        endpoint.bind(config.address)
        if config.does == "publish":
            gevent.spawn(publish, endpoint, journal, config.count)
    else:
        link = endpoint.dial(config.address, config.server_key)
        if config.does == "report":
            report(endpoint, link, journal, config.count)
        elif config.does == "call":
            gevent.spawn(call, link, journal)
        elif config.does == "crowd":
            for _ in range(CROWD):
                gevent.spawn(crowd, link, journal)
        elif config.does in ("flood", "ponder"):
            for _ in range(FLOOD):
                gevent.spawn(flood, link, SAY if config.does == "flood" else PONDER)
        elif config.does == "follow":
            follow(link, journal)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    ends = time.monotonic() + LIFE_S
    gevent.sleep(ends - time.monotonic())


if __name__ == "__main__":
    main()
