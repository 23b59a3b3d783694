"""Where a read goes, with replicas that a test plays."""

import time
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from zcompute.bus.errors import Unavailable
from zcompute.conductor.reading import ClientReads
from zcompute.db.errors import ConnectionLost, DatabaseBusy, StatementFailed
from zcompute.db.replicas.need import CURRENT, PRIMARY, Kind, stale
from zcompute.db.replicas.position import NOWHERE, Position, parse_position
from zcompute.db.replicas.reading import Reading
from zcompute.db.view import Joined

HERE = parse_position("0-1-100")
ROW: Joined[str, str] = Joined("row", lambda view, keys: {key: view.name for key in keys if key != "nobody"})  # type: ignore[attr-defined]


class Played:
    """A replica of which a test says how it fares."""

    def __init__(self, name: str, fails: BaseException | None = None) -> None:
        self.name = name
        self.fails = fails
        self.takes_reads = True
        self.in_flight = 0
        self.behind_s = 0.0
        self.age: float | None = 0.0
        self.reads = self.failures = 0
        self.waited: list[Position] = []
        self.short: list[str] = []

    def age_s(self, now_s: float) -> float | None:
        return self.age

    def wait(self, position: Position, timeout_s: float) -> None:
        self.waited.append(position)
        if isinstance(self.fails, gevent.Timeout):
            gevent.sleep(timeout_s)
            raise self.fails

    def get(self, joined: Joined[str, str], key: str, timeout_s: float) -> str | None:
        if self.fails is not None:
            raise self.fails
        return joined.ask(self, [key]).get(key)  # type: ignore[arg-type]  # a view with a name

    def read(self, work: Any, ends_at_s: float) -> Any:
        if self.fails is not None:
            raise self.fails
        return work(self)

    def fell_short(self, reason: str) -> None:
        self.short.append(reason)
        self.takes_reads = False


class Positions:
    """The primary's answers."""

    asked = shared = 0

    def __init__(self, answer: Position | Exception = HERE) -> None:
        self.answer = answer

    def position(self, timeout_s: float) -> Position:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def reading(*replicas: Played, positions: Positions | None = None) -> Reading:
    store: Any = SimpleNamespace(name="primary")
    store.read_until = lambda ends_at_s, work: work(store)
    played: Any = positions or Positions()
    made: Any = replicas
    return Reading(store, played, made)


def soon(time_s: float = 5.0) -> float:
    return time.monotonic() + time_s


def get(reads: Reading, key: str = "a", need: Any = CURRENT, time_s: float = 5.0) -> str | None:
    return reads.get(need, soon(time_s), ROW, key)


def test_a_current_read_waits_for_the_primarys_position_at_its_replica() -> None:
    one = Played("one")
    reads = reading(one)
    assert get(reads) == "one"
    assert one.waited == [HERE]
    assert reads.at_primary[Kind.CURRENT] == 0
    assert get(reads, "nobody") is None  # a miss is a miss: the replica has what the primary had
    assert reads.at_primary[Kind.CURRENT] == 0


def test_a_primary_read_asks_no_position() -> None:
    positions = Positions()
    reads = reading(Played("one"), positions=positions)
    assert get(reads, need=PRIMARY) == "primary"
    assert positions.asked == 0


def test_a_failed_read_is_tried_once_more_elsewhere_then_at_the_primary() -> None:
    one, two, three = (Played(name, ConnectionLost("gone")) for name in ("one", "two", "three"))
    two.fails = None
    reads = reading(one, two)
    one.in_flight, two.in_flight = 0, 50
    assert get(reads) == "two"
    assert one.short == ["gone"]
    assert reads.second_tries == 1
    two.fails, one.takes_reads = ConnectionLost("gone"), True
    assert get(reading(one, two, three)) == "primary"
    assert sum(bool(each.waited) for each in (one, two, three)) >= 2


def test_a_read_that_waits_half_its_time_goes_elsewhere_and_blames_nobody() -> None:
    one, two = Played("one", gevent.Timeout(1)), Played("two")
    two.in_flight = 50
    reads = reading(one, two)
    begun_s = time.monotonic()
    assert get(reads, time_s=0.4) == "two"
    assert 0.15 <= time.monotonic() - begun_s < 0.4
    assert one.short == []  # that it is late is for its watch to judge


def test_replicas_without_room_do_not_send_their_reads_to_the_primary() -> None:
    one, two = (Played(name, DatabaseBusy("all 8 connections in use")) for name in ("one", "two"))
    reads = reading(one, two)
    with pytest.raises(DatabaseBusy, match="in use"):
        get(reads)
    assert sum(reads.at_primary.values()) == 0
    assert one.short == two.short == []
    two.fails = None
    assert get(reads) == "two"


def test_a_heavy_read_costs_nobody_else_the_replica() -> None:
    one = Played("one")
    slow: Joined[str, str] = Joined("slow", lambda view, keys: dict.fromkeys(keys, view.name))  # type: ignore[attr-defined]

    def get_slowly(joined: Joined[str, str], key: str, timeout_s: float) -> str | None:
        gevent.sleep(timeout_s)
        raise gevent.Timeout(timeout_s)

    one.get = get_slowly  # type: ignore[method-assign]
    reads = reading(one)
    assert reads.get(CURRENT, soon(0.2), slow, "a") == "primary"
    assert one.takes_reads
    assert one.failures == 1


def test_the_primary_answers_when_no_replica_takes_reads_and_asks_no_position() -> None:
    one = Played("one")
    one.takes_reads = False
    positions = Positions()
    reads = reading(one, positions=positions)
    assert get(reads) == "primary"
    assert positions.asked == 0
    assert reads.at_primary[Kind.CURRENT] == 1


def test_without_the_primarys_position_there_is_no_current_answer() -> None:
    reads = reading(Played("one"), positions=Positions(ConnectionLost("away")))
    with pytest.raises(ConnectionLost):
        get(reads)


def test_a_primary_without_a_log_is_read_itself() -> None:
    assert get(reading(Played("one"), positions=Positions(NOWHERE))) == "primary"


def test_a_refused_statement_is_tried_nowhere_else() -> None:
    one, two = Played("one", StatementFailed(1054, "no such column")), Played("two", StatementFailed(1054, "x"))
    with pytest.raises(StatementFailed):
        get(reading(one, two))
    assert one.short == two.short == []


def test_a_stale_read_asks_no_position_where_a_replica_is_near_enough() -> None:
    one, positions = Played("one"), Positions()
    reads = reading(one, positions=positions)
    assert get(reads, need=stale(500)) == "one"
    assert positions.asked == 0
    one.age = 0.6
    assert get(reads, need=stale(500)) == "one"  # as a current one
    assert positions.asked == 1
    assert one.waited == [HERE]


def test_a_miss_of_a_stale_read_is_confirmed_at_the_primary() -> None:
    reads = reading(Played("one"))
    assert get(reads, "nobody", stale(500)) is None
    assert reads.confirmed == 1
    assert reads.at_primary[Kind.PRIMARY] == 1


def test_an_answer_that_comes_too_late_is_busy_not_a_timeout() -> None:
    reads = reading()
    slow: Joined[str, str] = Joined("slow", lambda view, keys: gevent.sleep(5))  # type: ignore[arg-type,return-value]
    with pytest.raises(DatabaseBusy, match="not answered in time"):
        reads.get(CURRENT, soon(0.05), slow, "a")


def test_without_a_held_lease_nothing_is_called_current() -> None:
    held = [True]
    reads = ClientReads(reading(Played("one")), lambda: held[0])
    context = SimpleNamespace(deadline=soon())
    assert reads.get(context, ROW, "a") == "one"

    def lose(view: Any) -> str:
        held[0] = False
        return "read"

    with pytest.raises(Unavailable, match="lease"):
        reads.read(context, lose)  # it was lost while the read was under way
    for need in (CURRENT, PRIMARY):
        with pytest.raises(Unavailable):
            reads.get(context, ROW, "a", need)
    assert reads.get(context, ROW, "a", stale(500)) == "one"
