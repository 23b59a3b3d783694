"""Lives of conductors on one fake database: start, share, die, be fenced, leave."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from tests.unit.conductor.ledger_fake import LOST_AFTER, FakeDatabase, FakeStore
from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, flavor, wait_for
from zcompute.bus.errors import Busy, NotOwner
from zcompute.conductor.errors import ConductorError
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LeaseSettings, LedgerLimits, LifeSettings

SETTINGS = LifeSettings(
    map_poll_ms=100,
    ledger=LedgerLimits(retry_ms_min=1, retry_ms_max=10, lane_retry_s_max=2.0),
    lease=LeaseSettings(beat_ms=20, hub_tick_ms=10, hub_late_ms_max=500, lease_ms=400, round_trip_ms_max=100),
)


class Region:
    """Some conductors of one cell."""

    def __init__(self) -> None:
        self.database = FakeDatabase()
        self.lives: dict[str, Incarnation] = {}
        self.stores: dict[str, FakeStore] = {}
        self.running: dict[str, gevent.Greenlet[..., Any]] = {}
        self.refusing: set[str] = set()

    def start(self, name: str) -> Incarnation:
        store = self.stores[name] = FakeStore(self.database)
        life = self.lives[name] = Incarnation(
            store, "c1", name, f"tcp://{name}", settings=SETTINGS, probe=lambda address, _: address in self.refusing
        )
        self.running[name] = gevent.spawn(life.run)
        assert life.wait_ready(2000)
        return life

    def freeze(self, name: str) -> None:
        """As if its database connections hung: its beats stop."""
        self.database.beats.pop(self.lives[name].id)

    def owners(self) -> list[int]:
        return sorted(len(life.ledger.owned()) for life in self.lives.values() if not life.reason)

    def close(self) -> None:
        for life in self.lives.values():
            life.stop(500)
        gevent.joinall(list(self.running.values()), timeout=3)


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region()
    yield region
    region.close()


def put(name: str) -> Any:
    def decide(change: Change) -> int:
        former = change.get(FLAVORS, ("1",))
        new = flavor("1", name=name)
        change.put(FLAVORS, new)
        return 1 if former is None else former.revision + 1

    return decide


def commit(life: Incarnation, name: str) -> Any:
    return life.ledger.commit(GLOBAL, [(FLAVORS, ("1",))], put(name), timeout_ms=1000)


def test_the_first_takes_all_and_the_second_gets_half(region: Region) -> None:
    gained: list[list[int]] = []
    lost: list[list[int]] = []
    one = region.start("s1")
    one.ledger.on_lose(lost.append)
    assert region.owners() == [256]
    assert one.ledger.map.version == one.ledger.owner_epoch(GLOBAL) == 1
    two = region.start("s2")
    two.ledger.on_gain(gained.append)
    wait_for(lambda: region.owners() == [128, 128])
    wait_for(lambda: sum(map(len, lost)) == 128)
    wait_for(lambda: one.ledger.map == two.ledger.map)
    assert sorted(one.ledger.owned() + two.ledger.owned()) == list(range(256))
    assert set(one.ledger.map.owners) == {"s1", "s2"}
    assert set(one.ledger.map.conductors) == {"s1", "s2"}
    assert sum(map(len, gained)) in (0, 128)


def test_a_dead_one_is_taken_over_and_nothing_acknowledged_is_lost(region: Region) -> None:
    one, two = region.start("s1"), region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    owner, other = (one, two) if one.ledger.owns(GLOBAL) else (two, one)
    assert commit(owner, "before") == 1
    old_epoch = owner.ledger.owner_epoch(GLOBAL)
    region.freeze(owner._row.service_id)
    wait_for(lambda: owner.reason != "")
    with pytest.raises(NotOwner):
        commit(owner, "after")
    wait_for(lambda: other.ledger.owns(GLOBAL))
    wait_for(lambda: region.owners() == [256])
    assert other.ledger.owner_epoch(GLOBAL) > old_epoch
    assert commit(other, "after") == 2


def test_a_stopped_one_writes_nothing_and_answers_nothing_after_it_was_taken_over(region: Region) -> None:
    """Only its lanes hang, as after SIGSTOP between a send and the answer; a peer takes over meanwhile."""
    one = region.start("s1")
    assert commit(one, "before") == 1
    for lane in region.stores["s1"].lane_connections.values():
        lane.gate.clear()
    ticket = one.ledger.submit(GLOBAL, [(FLAVORS, ("1",))], put("zombie"))
    read = one.ledger.submit(GLOBAL, [(FLAVORS, ("1",))], lambda change: change.get(FLAVORS, ("1",)))
    gevent.sleep(0.02)
    region.database.kill(one.id, [])
    for lane in region.stores["s1"].lane_connections.values():
        lane.gate.set()
    for zombie in (ticket, read):
        with pytest.raises(NotOwner):
            zombie.wait(1000)
    wait_for(lambda: one.reason != "")
    assert region.database.row(FLAVORS, ("1",)).name == "before"


def test_a_silent_beat_is_found_within_the_lease(region: Region) -> None:
    region.start("s1")
    two = region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    one = region.lives["s1"]
    assert one._beats is not None
    one._beats._stop = True  # its thread ends; the row stays
    wait_for(lambda: len(two.ledger.owned()) == 256, timeout_s=3)
    wait_for(lambda: "take" in one.reason or "gone" in one.reason or "fenced" in one.reason)


def test_a_refused_port_shortens_the_wait(region: Region) -> None:
    region.start("s1")
    two = region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    region.refusing.add("tcp://s1")
    one = region.lives["s1"]
    gevent.sleep(0.1)
    assert not one.reason, "a port that refuses is no sign of death while the beat goes on"
    assert one._beats is not None
    one._beats._stop = True
    wait_for(lambda: len(two.ledger.owned()) == 256, timeout_s=0.35)


def test_a_killed_one_is_taken_over_at_once_its_link_session_and_port_have_ended(region: Region) -> None:
    region.start("s1")
    two = region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    gevent.sleep(SETTINGS.lease.lease_ms / 1000)  # no disturbance for so long
    one = region.lives["s1"]
    assert one._beats is not None
    one._beats._stop = True
    region.refusing.add("tcp://s1")
    region.database.attending.discard(one.id)
    two.link_ended("s1")
    wait_for(lambda: len(two.ledger.owned()) == 256, timeout_s=0.1)


def test_a_link_that_ends_while_the_session_lives_takes_nothing_over(region: Region) -> None:
    """A REJECT rule between two that both reach the database: links end, ports refuse, beats go on."""
    one, two = region.start("s1"), region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    region.refusing.update(("tcp://s1", "tcp://s2"))
    for _ in range(20):
        one.link_ended("s2")
        two.link_ended("s1")
        gevent.sleep(0.05)
    assert (one.reason, two.reason) == ("", "")
    assert region.owners() == [128, 128]


def test_a_planned_stop_hands_everything_over_without_a_take_over(region: Region) -> None:
    one, two = region.start("s1"), region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    wait_for(lambda: one.ledger.map == two.ledger.map)
    one.stop(2000)
    assert one.reason == "stopped"
    region.running["s1"].join(timeout=2)
    assert set(one.ledger.map.owners) == {"s2"}, "the leaver knows the map that it made"
    two.announced(one.ledger.map.version)
    wait_for(lambda: len(two.ledger.owned()) == 256, timeout_s=1)
    assert one.id not in region.database.beats
    assert not region.database.conductors["s1"].alive
    assert not two.reason


def test_a_stop_alone_finishes_what_was_decided(region: Region) -> None:
    one = region.start("s1")
    tickets = [one.ledger.submit(GLOBAL, [(FLAVORS, ("1",))], put(str(n))) for n in range(5)]
    one.stop(2000)
    assert [ticket.wait(100) for ticket in tickets] == [1, 2, 3, 4, 5]
    region.running["s1"].join(timeout=2)
    two = region.start("s2")
    assert len(two.ledger.owned()) == 256
    assert commit(two, "later") == 6


def test_a_service_that_starts_again_takes_its_partitions_back(region: Region) -> None:
    one = region.start("s1")
    assert commit(one, "a") == 1
    again = region.start("s1")
    wait_for(lambda: one.reason != "")
    wait_for(lambda: len(again.ledger.owned()) == 256)
    assert commit(again, "b") == 2


def test_a_database_that_stalls_kills_nobody(region: Region) -> None:
    one, two = region.start("s1"), region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    region.database.down = True
    gevent.sleep(0.7)
    region.database.down = False
    gevent.sleep(0.3)
    assert (one.reason, two.reason) == ("", "")
    assert region.owners() == [128, 128]


def test_the_lease_says_whether_reads_are_current(region: Region) -> None:
    one = region.start("s1")
    wait_for(one.lease_held)
    region.database.down = True
    wait_for(lambda: not one.lease_held(), timeout_s=1)
    region.database.down = False
    wait_for(one.lease_held)


def test_a_database_of_another_cell_is_refused() -> None:
    life = Incarnation(FakeStore(FakeDatabase("c2")), "c1", "s1", "tcp://s1", settings=SETTINGS)
    with pytest.raises(ConductorError, match="c2"):
        life.run()


def test_what_a_life_turned_away_for_its_database_is_still_known_in_the_next() -> None:
    database, refused = FakeDatabase(), Counter[str]()
    settings = replace(SETTINGS, ledger=replace(SETTINGS.ledger, away_ms_max=0))
    first, second = (
        Incarnation(FakeStore(database), "c1", name, f"tcp://{name}", settings=settings, refused=refused)
        for name in ("s1", "s2")
    )
    living = gevent.spawn(first.run)
    assert first.wait_ready(2000)
    database.down = True
    waiting = first.ledger.submit(GLOBAL, [(FLAVORS, ("1",))], lambda change: change.put(FLAVORS, flavor("1")))

    def turned_away() -> bool:
        with contextlib.suppress(Busy):
            first.ledger.submit(GLOBAL, [(FLAVORS, ("1",))], lambda _: None)
        return bool(refused)

    wait_for(turned_away)
    database.down = False
    waiting.wait(2000)
    first.stop(500)
    living.join(3)
    assert second.ledger.refused["away_ms_max"] == 1


def test_a_raised_term_ends_the_life(region: Region) -> None:
    one = region.start("s1")
    region.database.term = 2
    wait_for(lambda: "term" in one.reason or "fenced" in one.reason)


def test_a_hand_over_whose_answer_is_lost_moves_the_partitions_once(region: Region) -> None:
    one = region.start("s1")
    for lane in region.stores["s1"].lane_connections.values():
        lane.faults.extend([LOST_AFTER] * 2)
    two = region.start("s2")
    wait_for(lambda: region.owners() == [128, 128])
    assert sorted(one.ledger.owned() + two.ledger.owned()) == list(range(256))
    assert (one.reason, two.reason) == ("", "")


def test_five_share_and_three_deaths_leave_two_halves(region: Region) -> None:
    for n in range(5):
        region.start(f"s{n}")
    wait_for(lambda: region.owners() == [51, 51, 51, 51, 52])
    for n in range(3):
        region.lives[f"s{n}"]._end("killed")
    wait_for(lambda: region.owners() == [128, 128], timeout_s=5)


def test_a_greenlet_that_will_not_die_keeps_nothing_from_being_released(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcompute.conductor.incarnation.KILL_S_MAX", 0.05)
    one = region.start("s1")
    go = Event()

    def stubborn() -> None:
        try:
            go.wait()
        finally:
            go.wait()

    one._greenlets.append(gevent.spawn(stubborn))
    gevent.sleep(0)
    one.stop(2000)
    region.running["s1"].join(timeout=2)
    go.set()
    assert region.running["s1"].successful(), region.running["s1"].exception
    assert not region.database.conductors["s1"].alive
