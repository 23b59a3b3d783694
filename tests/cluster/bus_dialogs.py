"""What the tests of the bus' faults say to their peers: the methods, the journal, an application's outbox."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import gevent
import msgspec
from gevent.event import Event as Flag

from zcompute.bus import Ack, CallContext, Endpoint, Link, NotOwner, Report, StreamEvents, StreamSkip, Unavailable

STREAM_ROLES = frozenset({"compute", "conductor"})
HOLD_STEP_S = 0.005
REPORTS_STEP_S = 0.003
PONDER_S = 0.005


class Ask(msgspec.Struct):
    text: str
    number: int = 0


class Answer(msgspec.Struct):
    text: str


@dataclass(frozen=True)
class Method:
    name: str
    pool: str = "calls"
    idempotent: bool = False
    interface: str = "peer"
    request: type = Ask
    reply: type | None = Answer
    version: tuple[int, int] = (1, 0)
    roles: frozenset[str] = frozenset({"compute", "conductor"})


SAY = Method("say", idempotent=True)
HOLD = Method("hold")
HOLD_AGAIN = Method("hold_again", idempotent=True)
FAIL = Method("fail")
HOLD_READ = Method("hold_read", pool="reads")
READ = Method("read", pool="reads")
SKIM = Method("skim", pool="reads", reply=None)
PONDER = Method("ponder")
ALERT = Method("alert", pool="control")
RELEASE = Method("release", pool="control", reply=None)
NOTE = Method("note", reply=None)
KEPT_OUT = Method("kept_out", roles=frozenset({"operator"}))


class Config(msgspec.Struct, kw_only=True):
    """What a peer is and does, as JSON."""

    service_id: str
    role: str
    public: str
    secret: str
    keys: list[tuple[str, str, str]]  # name, public key, role: who may connect
    address: str
    journal: str
    server_key: str = ""  # dial with it; "": listen
    limits: dict[str, int] = {}
    does: str = ""  # report, call, crowd, flood, ponder, follow or publish
    count: int = 0


class Journal:
    """Lines of words in a file, there as soon as they are written: they outlive a killed process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *lines: tuple[object, ...]) -> None:
        os.write(self._file, "".join(" ".join(map(str, line)) + "\n" for line in lines).encode())

    def lines(self, kind: str) -> list[list[str]]:
        """The lines that begin with this word, without it."""
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [words[1:] for words in map(str.split, lines) if words[0] == kind]


class Outbox:
    """Reports until their durable ack: offered in order, and all anew to another life of the receiver."""

    def __init__(self, endpoint: Endpoint, reports: Iterable[Report], acked: Callable[[Ack], None]) -> None:
        self.open = {(report.key, report.seq): report for report in reports}
        self._waiting = dict(self.open)
        self._acked = acked
        self._life = ""
        self._wake = Flag()
        endpoint.on_acks(self._on_acks)
        endpoint.on_link_up(self._on_up)

    def offered(self, count: int) -> None:
        """The first so many are on their way already."""
        for name in list(self._waiting)[:count]:
            del self._waiting[name]

    def _on_up(self, link: Link) -> None:
        if link.peer is not None and link.peer.incarnation != self._life:
            self._life = link.peer.incarnation
            self._waiting = dict(self.open)
        self._wake.set()

    def _on_acks(self, link: Link, acks: list[Ack]) -> None:
        for ack in acks:
            if self.open.pop((ack.key, ack.seq), None) is not None:
                self._acked(ack)
            self._waiting.pop((ack.key, ack.seq), None)
        self._wake.set()

    def run(self, link: Link) -> None:
        """Offer what waits, until all is acked."""
        while self.open:
            self._wake.clear()
            waiting = list(self._waiting.items())
            for name, _ in waiting[: link.report([report for _, report in waiting])]:
                del self._waiting[name]
            self._wake.wait(1)


def reports_of(keys: int, count: int) -> list[Report]:
    """`count` reports of each key, by turns; each says in its payload what it is."""
    return [Report(f"k{key}", seq, f"k{key}/{seq}".encode()) for seq in range(count) for key in range(keys)]


def assert_accounted(journal: Journal, reports: Iterable[Report]) -> int:
    """Every report arrived; what is new came in order per key; what came again is known by its key and sequence.

    Returns how many repeats there were.
    """
    seen: dict[str, list[int]] = defaultdict(list)
    repeats = 0
    for key, seq, payload in journal.lines("report"):
        assert payload == f"{key}/{seq}"
        if int(seq) in seen[key]:
            repeats += 1
            continue
        assert not seen[key] or int(seq) == seen[key][-1] + 1, (key, seq, seen[key][-1])
        seen[key].append(int(seq))
    expected: dict[str, list[int]] = defaultdict(list)
    for report in reports:
        expected[report.key].append(report.seq)
    assert dict(seen) == dict(expected)
    return repeats


class Service:
    """Serves every method, takes reports, state events and streams, and writes down what befalls it."""

    def __init__(self, endpoint: Endpoint, journal: Journal) -> None:
        self.journal = journal
        self._released = Flag()
        for method in (HOLD, HOLD_AGAIN, HOLD_READ):
            endpoint.serve(method, self._hold)
        for method in (SAY, READ, ALERT, KEPT_OUT):
            endpoint.serve(method, lambda ask, context: Answer(ask.text))
        endpoint.serve(FAIL, self._fail)
        endpoint.serve(PONDER, self._ponder)
        endpoint.serve(RELEASE, lambda ask, context: self._released.set())
        endpoint.serve(NOTE, lambda ask, context: journal.write(("note", ask.number)))
        endpoint.serve(SKIM, lambda ask, context: None)
        endpoint.on_reports(self._on_reports)
        endpoint.on_event("state", lambda link, event: journal.write(("state", event.key, event.version)))
        endpoint.on_stream("news", self._on_news)

    def _hold(self, ask: Ask, context: CallContext) -> Answer:
        """Answers when it is told to, or gives up when nobody waits any more."""
        self.journal.write(("begun", ask.text))
        while not self._released.wait(HOLD_STEP_S):
            if context.cancelled:
                self.journal.write(("cancelled", ask.text))
                break
        return Answer(ask.text)

    def _ponder(self, ask: Ask, context: CallContext) -> Answer:
        """Waits, as for a database, and answers."""
        gevent.sleep(PONDER_S)
        return Answer(ask.text)

    def _fail(self, ask: Ask, context: CallContext) -> Answer:
        if ask.text == "Unavailable":
            raise Unavailable("the database is away")
        if ask.text == "NotOwner":
            raise NotOwner("another's", partition=7, map_version=3)
        hidden_from_the_wire = ask.text
        raise ZeroDivisionError(f"as asked by {hidden_from_the_wire}")

    def _on_reports(self, link: Link, reports: list[Report]) -> None:
        """Durable first, acked then; slow enough to be killed in the middle."""
        gevent.sleep(REPORTS_STEP_S)
        self.journal.write(*(("report", report.key, report.seq, report.payload.decode()) for report in reports))
        link.ack([Ack(report.key, report.seq, "applied") for report in reports])

    def _on_news(self, link: Link, news: StreamEvents | StreamSkip) -> None:
        if isinstance(news, StreamSkip):
            self.journal.write(("gap", news.first, news.end))
            return
        now_us = int(time.monotonic() * 1e6)  # one clock for all processes of a machine
        numbered = enumerate(map(bytes.decode, news.payloads), news.cursor)
        self.journal.write(*(("news", cursor, payload, now_us) for cursor, payload in numbered))
