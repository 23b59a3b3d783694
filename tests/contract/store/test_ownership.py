"""Lanes, take-over, hand-over: who may write which partition, and that it is one at a time."""

from collections import Counter
from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from tests.contract.store.conftest import conductor, on_mariadb
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance
from zcompute.db import ownership
from zcompute.db.batch import HandOver
from zcompute.db.errors import ConnectionLost, Fenced, GuardFailed, ReceiverDead
from zcompute.db.native.connection import LOCK_WAIT_S, Connection
from zcompute.db.native.lane_lock import take_lane
from zcompute.db.store import ConductorRow, Store
from zcompute.db.tables import INSTANCES
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.partition import PARTITIONS


def owners(store: Store) -> Counter[int | None]:
    return Counter(row.lane_id for row in store.read_map().partitions)


def test_the_first_conductor_takes_all_spread_over_its_lanes(store: Store) -> None:
    lanes = store.register(conductor(), 3)
    assert lanes == sorted(set(lanes))
    assert store.read_map().map_version == 1
    assert store.take_over([], lanes, 1) == 2
    rows = store.read_map()
    assert sorted(owners(store).values()) == [85, 85, 86]
    assert {row.owner_epoch for row in rows.partitions} == {2}
    assert rows.ownerless() == []
    assert len(rows.partitions_of(lanes)) == PARTITIONS
    assert store.take_over([], lanes, 1) == 2


def test_every_map_that_names_other_conductors_has_a_higher_version(store: Store) -> None:
    versions = [store.read_map().map_version]

    def seen() -> list[str]:
        rows = store.read_map()
        versions.append(rows.map_version)
        return sorted(rows.partition_map().conductors)

    [lane] = store.register(conductor("con1"), 1)
    assert seen() == ["con1"]
    assert store.register(conductor("con1"), 1) == [lane]
    assert store.read_map().map_version == versions[-1]
    store.register(conductor("con2"), 1)
    assert seen() == ["con1", "con2"]
    store.release("con2-1")
    assert seen() == ["con1"]
    store.release("con2-1")
    assert store.read_map().map_version == versions[-1]
    store.take_over([], [lane], 1)
    store.register(conductor("con3"), 1)
    seen()
    assert store.take_over(["con3-1"], [lane], 1) == versions[-1] + 1  # it held nothing, and is gone
    assert seen() == ["con1"]
    assert versions == sorted(set(versions))


def test_a_living_conductor_may_listen_elsewhere_and_a_former_incarnation_may_not(store: Store) -> None:
    former, present = conductor(), conductor(incarnation="con1-2")
    store.register(former, 1)
    store.register(present, 1)
    before = store.read_map().map_version
    assert store.readdress(present.service_id, present.incarnation, "tcp://10.0.0.1:2", "k" * 40) == before + 1
    rows = store.read_map()
    assert rows.map_version == before + 1
    moved = rows.partition_map().conductors[present.service_id]
    assert (moved.address, moved.public_key, moved.incarnation) == ("tcp://10.0.0.1:2", "k" * 40, present.incarnation)
    for service_id, incarnation in ((former.service_id, former.incarnation), ("nobody", present.incarnation)):
        with pytest.raises(Fenced):
            store.readdress(service_id, incarnation, "tcp://10.0.0.1:3", "k" * 40)
    store.release(present.incarnation)
    with pytest.raises(Fenced):
        store.readdress(present.service_id, present.incarnation, "tcp://10.0.0.1:3", "k" * 40)
    assert store.read_map().map_version == before + 2


def test_the_map_names_owner_epoch_and_living_conductors(store: Store) -> None:
    lanes = store.register(conductor(), 1)
    store.register(conductor("con2"), 1)
    store.take_over([], lanes, 1)
    store.release("con2-1")
    seen = store.read_map().partition_map()
    assert (seen.cell, seen.version, seen.term) == ("c1", 4, 1)
    assert set(seen.owners) == {"con1"}
    assert set(seen.epochs) == {3}
    assert list(seen.conductors) == ["con1"]
    assert seen.conductors["con1"].incarnation == "con1-1"
    assert seen.conductors["con1"].address == conductor().address


def test_registering_the_same_incarnation_again_gives_the_same_lanes(store: Store) -> None:
    assert store.register(conductor(), 2) == store.register(conductor(), 2)
    assert store.read_beats() == {"con1-1": 0}


def test_a_service_that_starts_anew_sets_its_former_lanes_dead(store: Store) -> None:
    former = LaneWriter.register(store, conductor())
    store.take_over([], [former.lane_id], 1)
    lanes = store.register(conductor(incarnation="con1-2"), 1)
    with pytest.raises(Fenced):
        former.commit()
    rows = store.read_map()
    assert store.read_beats() == {"con1-2": 0}
    assert len(rows.ownerless()) == PARTITIONS
    assert rows.conductors["con1"].incarnation == "con1-2"
    assert store.take_over([], lanes, 1) == 4


def test_a_service_that_starts_often_leaves_few_lanes(store: Store) -> None:
    for number in range(5):
        lanes = store.register(conductor(incarnation=f"con1-{number}"), 2)
        store.take_over([], lanes, 1)
    assert set(store.read_map().lanes) == set(lanes)


def test_take_over_fences_the_dead_and_keeps_the_living(store: Store) -> None:
    first = LaneWriter.register(store, conductor())
    second = LaneWriter.register(store, conductor("con2"))
    third = LaneWriter.register(store, conductor("con3"))
    store.take_over([], [first.lane_id], 1, partitions=range(100))
    store.take_over([], [second.lane_id], 1)
    assert owners(store) == {first.lane_id: 100, second.lane_id: 156}
    version = store.take_over(["con1-1"], [third.lane_id], 1)
    assert owners(store) == {third.lane_id: 100, second.lane_id: 156}
    epochs = store.read_map().partitions_of([third.lane_id])
    assert set(epochs.values()) == {version}
    assert store.read_beats() == {"con2-1": 0, "con3-1": 0}
    with pytest.raises(Fenced):
        first.commit()
    second.commit()
    third.commit()


def test_take_over_of_named_partitions_leaves_the_others(store: Store) -> None:
    lanes = store.register(conductor(), 1)
    store.take_over([], lanes, 1, partitions=[1, 2, 3])
    rows = store.read_map()
    assert sorted(rows.partitions_of(lanes)) == [1, 2, 3]
    assert len(rows.ownerless()) == PARTITIONS - 3


def test_who_is_dead_or_of_another_term_takes_nothing(store: Store) -> None:
    lanes = store.register(conductor(), 1)
    with pytest.raises(Fenced, match="term"):
        store.take_over([], lanes, 2)
    store.register(conductor(incarnation="con1-2"), 1)
    with pytest.raises(Fenced, match="dead"):
        store.take_over([], lanes, 1)
    assert owners(store) == {None: PARTITIONS}


def test_two_that_declare_each_other_dead_leave_one_owner(store: Store, open_at: Callable[[str], Store]) -> None:
    names = ("con1", "con2")
    stores = dict(zip(names, (store, open_at(store.url)), strict=True))
    lanes = {name: stores[name].register(conductor(name), 2) for name in names}

    def fight(name: str, other: str) -> int | None:
        try:
            return stores[name].take_over([f"{other}-1"], lanes[name], 1)
        except Fenced:
            return None

    fights = [gevent.spawn(fight, *names), gevent.spawn(fight, *reversed(names))]
    gevent.joinall(fights, timeout=20, raise_error=True)
    won = [name for name, each in zip(names, fights, strict=True) if each.value is not None]
    assert len(won) == 1
    assert set(owners(store)) == set(lanes[won[0]])


def test_concurrent_take_overs_give_each_partition_one_owner(store: Store, open_at: Callable[[str], Store]) -> None:
    dead = store.register(conductor("dead"), 4)
    store.take_over([], dead, 1)
    stores = [store, open_at(store.url), open_at(store.url)]
    lanes = [each.register(conductor(f"con{at}"), 2) for at, each in enumerate(stores)]
    before = store.read_map().map_version
    takes = [gevent.spawn(each.take_over, ["dead-1"], mine, 1) for each, mine in zip(stores, lanes, strict=True)]
    gevent.joinall(takes, timeout=20, raise_error=True)
    rows = store.read_map()
    assert rows.map_version == before + 1
    assert len({row.lane_id for row in rows.partitions} & set(dead)) == 0
    winners = [mine for mine in lanes if rows.partitions_of(mine)]
    assert len(winners) == 1


def test_take_over_races_with_commits_and_no_batch_lands_after_it(
    store: Store, open_at: Callable[[str], Store]
) -> None:
    zombie = LaneWriter.register(store, conductor())
    heir = open_at(store.url)
    lanes = heir.register(conductor("con2"), 1)
    committed = []

    def write() -> None:
        try:
            for _ in range(1000):
                stored = instance(name="vm")
                zombie.commit(insert(INSTANCES, stored))
                committed.append(stored.uuid)
        except Fenced:
            return

    writing = gevent.spawn(write)
    with gevent.Timeout(10):
        while len(committed) < 3:
            gevent.sleep(0.001)
    heir.take_over(["con1-1"], lanes, 1)
    at_take_over = {each.uuid for each in heir.scan(INSTANCES, limit=10_000)}
    writing.join(timeout=10)
    assert writing.successful()
    assert {each.uuid for each in heir.scan(INSTANCES, limit=10_000)} == at_take_over == set(committed)


@on_mariadb
def test_take_over_kills_a_zombie_that_holds_its_lane(store: Store) -> None:
    target = parse_url(store.url)
    assert isinstance(target, MariaDbTarget)
    lane = LaneWriter.register(store, conductor())
    zombie = session_of_lane(target, lane.lane_id)
    zombie.query(b"START TRANSACTION")
    zombie.query(b"UPDATE lanes SET applied = 1 WHERE lane_id = %d" % lane.lane_id)
    heir = store.register(conductor("con2"), 1)
    with gevent.Timeout(LOCK_WAIT_S * 0.75):  # it is killed while its lock is waited for, not after that
        assert store.take_over(["con1-1"], heir, 1) == 3
    with pytest.raises(Fenced):
        lane.commit()
    zombie.cut()


def session_of_lane(target: MariaDbTarget, lane_id: int) -> Connection:
    connection = Connection(target)
    take_lane(target, lane_id, lambda sql: connection.rows(sql.encode())[0][0])
    return connection


@on_mariadb
def test_a_take_over_ends_no_stranger_who_has_the_number_of_a_lane_from_before_the_servers_restart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = parse_url(store.url)
    assert isinstance(target, MariaDbTarget)
    lane = LaneWriter.register(store, conductor())
    stranger, holding, looked = Connection(target), Connection(target), Event()
    stranger.query(b"UPDATE lanes SET connection_id = CONNECTION_ID() WHERE lane_id = %d" % lane.lane_id)
    holding.query(b"START TRANSACTION")
    holding.query(b"UPDATE lanes SET applied = 1 WHERE lane_id = %d" % lane.lane_id)
    heir = store.register(conductor("con2"), 1)
    monkeypatch.setattr(ownership, "failpoint", lambda name: looked.set() if name == "ownership.after_kill" else None)
    taking = gevent.spawn(store.take_over, ["con1-1"], heir, 1)
    assert looked.wait(LOCK_WAIT_S)
    holding.query(b"ROLLBACK")
    assert taking.get(timeout=5) == 3
    assert stranger.rows(b"SELECT 1") == [(1,)]
    for connection in (stranger, holding):
        connection.cut()


@on_mariadb
def test_a_lane_that_connects_anew_ends_its_former_session_and_what_that_had_open(store: Store) -> None:
    target = parse_url(store.url)
    assert isinstance(target, MariaDbTarget)
    lane = LaneWriter.register(store, conductor())
    former, other = session_of_lane(target, lane.lane_id), session_of_lane(target, lane.lane_id + 1)
    former.query(b"START TRANSACTION")
    former.query(b"UPDATE lanes SET applied = 1 WHERE lane_id = %d" % lane.lane_id)
    with gevent.Timeout(LOCK_WAIT_S * 0.75):
        lane.commit()
    with pytest.raises(ConnectionLost):
        former.query(b"COMMIT")
    assert other.rows(b"SELECT 1") == [(1,)]
    other.cut()
    lane.connection.close()


@on_mariadb
def test_a_process_stopped_in_the_middle_of_a_take_over_holds_nobody_up(
    store: Store, open_at: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction has locked the lanes of the dead, and no connection of a lane is to blame: the server ends it."""
    zombie, heir = store, open_at(store.url)
    store.register(conductor("con1"), 1)
    lanes_of_zombie, lanes_of_heir = store.register(conductor("con2"), 1), heir.register(conductor("con3"), 1)
    resumed, stopped = Event(), Event()

    def stop(name: str) -> None:
        if name == "ownership.lanes_dead" and not stopped.is_set():
            stopped.set()
            resumed.wait()

    monkeypatch.setattr(ownership, "failpoint", stop)
    late = gevent.spawn(zombie.take_over, ["con1-1"], lanes_of_zombie, 1)
    assert stopped.wait(5)
    with gevent.Timeout(6):
        heir.take_over(["con1-1", "con2-1"], lanes_of_heir, 1)
    resumed.set()
    with pytest.raises((Fenced, ConnectionLost)):
        late.get(timeout=10)
    assert owners(store) == {lanes_of_heir[0]: PARTITIONS}


def test_release_ends_the_incarnation(store: Store, writer: LaneWriter) -> None:
    store.take_over([], [writer.lane_id], 1)
    store.release("con1-1")
    assert store.read_beats() == {}
    assert not store.read_map().conductors["con1"].alive
    assert len(store.read_map().ownerless()) == PARTITIONS
    with pytest.raises(Fenced):
        writer.commit()


def test_a_hand_over_moves_partitions_by_the_leaving_lanes_own_batch(store: Store, writer: LaneWriter) -> None:
    store.take_over([], [writer.lane_id], 1)
    receiver = LaneWriter.register(store, conductor("con2"))
    stored, version = instance(), store.read_map().map_version + 1
    writer.commit(insert(INSTANCES, stored), hand_over=HandOver([7, 3, 5], receiver.lane_id))
    rows = store.read_map()
    assert rows.map_version == version
    assert rows.partitions_of([receiver.lane_id]) == {3: version, 5: version, 7: version}
    assert len(rows.partitions_of([writer.lane_id])) == PARTITIONS - 3
    assert store.fetch(INSTANCES, [(stored.uuid,)])
    receiver.commit(hand_over=HandOver([3], writer.lane_id))
    assert store.read_map().partitions_of([receiver.lane_id]) == {5: version, 7: version}


def test_nothing_is_handed_to_the_dead(store: Store, writer: LaneWriter) -> None:
    store.take_over([], [writer.lane_id], 1)
    [dead] = store.register(conductor("con2"), 1)
    store.release("con2-1")
    version = store.read_map().map_version
    for lane in (dead, 10_000):
        stored = instance()
        with pytest.raises(ReceiverDead):
            writer.commit(insert(INSTANCES, stored), hand_over=HandOver([1], lane))
        assert store.fetch(INSTANCES, [(stored.uuid,)]) == {}
    assert store.read_map().map_version == version
    writer.commit()


def test_nobody_hands_over_what_is_not_theirs(store: Store, writer: LaneWriter) -> None:
    receiver = LaneWriter.register(store, conductor("con2"))
    version = store.take_over([], [receiver.lane_id], 1, partitions=[1])
    with pytest.raises(GuardFailed, match="partitions"):
        writer.commit(hand_over=HandOver([1], receiver.lane_id))
    assert store.read_map().partitions_of([receiver.lane_id]) == {1: version}


def test_a_dead_lane_hands_nothing_over(store: Store, writer: LaneWriter) -> None:
    store.take_over([], [writer.lane_id], 1)
    receiver = store.register(ConductorRow("con2", "con2-1", "tcp://x"), 1)
    store.take_over(["con1-1"], receiver, 1)
    with pytest.raises(Fenced):
        writer.commit(hand_over=HandOver([1], receiver[0]))
    assert owners(store) == {receiver[0]: PARTITIONS}
