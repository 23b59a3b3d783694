"""The conductor of loadtest.fanin: an endpoint that acknowledges every report at once, without a database.

python -m loadtest.fanin_conductor KEYS_FILE        (prints its address, and its counters for each line that it is sent)
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from zcompute.bus import Ack, Endpoint, Identity, KeyEntry, Keyring, Link, Report  # noqa: E402

WATCH_S = 0.05


def acknowledge(link: Link, reports: list[Report]) -> None:
    """Every report is durable at once."""
    link.ack([Ack(report.key, report.seq, "applied") for report in reports])


class Lateness:
    """How late this process' hub was at most, for want of a processor or for too much to do."""

    def __init__(self) -> None:
        self.late_ms_max = 0

    def run(self) -> None:
        """Measure for ever."""
        while True:
            due = time.monotonic() + WATCH_S
            gevent.sleep(WATCH_S)
            self.late_ms_max = max(self.late_ms_max, int(1000 * (time.monotonic() - due)))


def main() -> None:
    """Serve until nobody asks any more."""
    keys = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    entries = [KeyEntry(f"agent{number}", key[0], "compute", "c1") for number, key in enumerate(keys["agents"])]
    public, secret = keys["conductor"]
    identity = Identity("conductor", "c1", "conductor1", public_key=public, secret_key=secret)
    endpoint = Endpoint(identity, keyring=Keyring(entries))
    endpoint.on_reports(acknowledge)
    print(endpoint.bind("tcp://127.0.0.1:0"), flush=True)
    watch = Lateness()
    gevent.spawn(watch.run)
    while gevent.get_hub().threadpool.apply(sys.stdin.readline):
        print(json.dumps({**endpoint.counters, "late_ms_max": watch.late_ms_max}), flush=True)
        watch.late_ms_max = 0


if __name__ == "__main__":
    main()
