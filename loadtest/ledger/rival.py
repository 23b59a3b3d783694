"""What an operator's team could write instead of the ledger: a service that updates one row a transaction.

    python -m loadtest.ledger.rival single_update|orm FILE     ("ADDRESS" once it listens; a line N: N connections)

The same bus, keys, reports and verdicts; a pool of workers with a connection each, as Nova's conductor has them.
``single_update``: raw PyMySQL, a guarded UPDATE by itself where nothing but progress changes, else a transaction that
reads, judges, updates and inserts. ``orm``: SQLAlchemy's ORM, the object read for update, changed, committed.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402
from gevent.queue import Queue  # noqa: E402

from loadtest.ledger.rival_orm import OrmWriter  # noqa: E402
from loadtest.ledger.rival_writers import SingleWriter, Writer, begin_epoch  # noqa: E402
from loadtest.ledger.world import CELL  # noqa: E402
from zcompute.bus import Ack, Endpoint, Identity, Link, Report  # noqa: E402
from zcompute.db.url import MariaDbTarget, parse_url  # noqa: E402
from zcompute.keys import read_keyring  # noqa: E402
from zcompute.objects.messages.cluster import Empty  # noqa: E402
from zcompute.objects.messages.hosts import HostAttachRequest, HostBeat, HostBeginReply, HostBeginRequest  # noqa: E402
from zcompute.objects.methods import HOST_ATTACH, HOST_BEAT, HOST_BEGIN  # noqa: E402
from zcompute.objects.report import VERDICT_INVALID, Observation, ReportBody  # noqa: E402

WRITERS: dict[str, type[Writer]] = {"single_update": SingleWriter, "orm": OrmWriter}
_decode = msgspec.msgpack.Decoder(ReportBody).decode


class Rival:
    """Takes reports into a queue; workers write them one by one; verdicts leave together where they come together."""

    def __init__(self, kind: type[Writer], target: MariaDbTarget, endpoint: Endpoint) -> None:
        self._kind = kind
        self._target = target
        self._queue: Queue[tuple[Link, Report, Observation, int]] = Queue()
        self._workers: list[gevent.Greenlet] = []
        self._epochs: dict[Link, dict[str, int]] = {}
        self._acks: dict[Link, list[Ack]] = {}
        endpoint.serve(HOST_BEGIN, self.begin)
        endpoint.serve(HOST_ATTACH, self.attach)
        endpoint.serve(HOST_BEAT, self.beat)
        endpoint.on_reports(self.received)
        endpoint.on_link_down(self.link_down)

    def begin(self, request: HostBeginRequest, context: Any) -> HostBeginReply:
        """A new agent: its host's next epoch."""
        return HostBeginReply(agent_epoch=begin_epoch(self._target, request))

    def attach(self, request: HostAttachRequest, context: Any) -> Empty:
        """The link speaks for these hosts."""
        self._epochs.setdefault(context.link, {}).update(request.epochs)
        return Empty()

    def beat(self, request: HostBeat, context: Any) -> None:
        """Nothing depends on it here."""

    def link_down(self, link: Link) -> None:
        """Its agent attaches anew."""
        self._epochs.pop(link, None)

    def received(self, link: Link, reports: list[Report]) -> None:
        """A frame of reports."""
        epochs = self._epochs.get(link, {})
        for report in reports:
            body = _decode(report.payload)
            epoch = epochs.get(body.host)
            if epoch is None or not isinstance(body, Observation) or body.instance_uuid != report.key:
                self._answer(link, report, VERDICT_INVALID)
            else:
                self._queue.put((link, report, body, epoch))

    def connections(self, count: int) -> None:
        """Work with so many connections from now on."""
        gevent.killall(self._workers)
        self._workers = [gevent.spawn(self._work) for _ in range(count)]

    def _work(self) -> None:
        writer = self._kind(self._target)
        try:
            while True:
                link, report, body, epoch = self._queue.get()
                self._answer(link, report, writer.write(body, epoch, report.seq))
        finally:
            writer.close()

    def _answer(self, link: Link, report: Report, verdict: str) -> None:
        if not self._acks:
            gevent.spawn(self._flush)
        self._acks.setdefault(link, []).append(Ack(report.key, report.seq, verdict))

    def _flush(self) -> None:
        acks, self._acks = self._acks, {}
        for link, verdicts in acks.items():
            if link.up:
                link.ack(verdicts)


def main() -> None:
    """Serve until the input ends."""
    order = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    target = parse_url(order["url"])
    if not isinstance(target, MariaDbTarget):
        raise SystemExit(f"expected a MariaDB database, found {order['url']}")
    identity = Identity("conductor", CELL, order["id"], public_key=order["public"], secret_key=order["secret"])
    endpoint = Endpoint(identity, keyring=read_keyring(order["keyring"]))
    rival = Rival(WRITERS[sys.argv[1]], target, endpoint)
    print(endpoint.bind("tcp://127.0.0.1:0"), flush=True)
    for line in FileObject(sys.stdin.buffer):
        rival.connections(int(line))
        print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
