"""Greenlets are killed and timed out at random points: no connection is used again in the middle of a packet."""

import random
from collections.abc import Callable

import gevent
import pytest

from tests.contract.store.conftest import conductor, on_mariadb
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance
from zcompute.db.errors import StoreError
from zcompute.db.native.connection import Connection
from zcompute.db.native.session import WRITERS_MAX
from zcompute.db.store import READERS_MAX, Store
from zcompute.db.tables import INSTANCES
from zcompute.db.url import MariaDbTarget, parse_url

ROUNDS = 24
AT_ONCE = 2 * READERS_MAX
ROWS = 24
CONNECTIONS_MAX = READERS_MAX + WRITERS_MAX + 3  # one lane, our own, one just going


@pytest.fixture
def stored(store: Store, writer: LaneWriter) -> list[str]:
    """Rows that each say who they are."""
    rows = [instance() for _ in range(ROWS)]
    writer.commit(insert(INSTANCES, *rows))
    return [row.uuid for row in rows]


class Victims:
    """Greenlets at work, each ended soon after its begin: killed, or by a Timeout within."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.wrong: list[str] = []
        self.ended_well = 0
        self.cut_short = 0

    def run(self, work: Callable[[], None], patience_s: float) -> None:
        """``AT_ONCE`` of them together."""
        victims = [gevent.spawn(self._limited, work, self.chance.random() < 0.5, patience_s) for _ in range(AT_ONCE)]
        for victim in victims:
            gevent.sleep(self.chance.random() * patience_s / AT_ONCE)
            if self.chance.random() < 0.5:
                victim.kill(block=False)
                self.cut_short += 1
        gevent.joinall(victims, timeout=20)
        assert all(victim.ready() for victim in victims)

    def _limited(self, work: Callable[[], None], limited: bool, patience_s: float) -> None:
        with gevent.Timeout(self.chance.random() * patience_s if limited else 20.0, False):
            try:
                work()
                self.ended_well += 1
            except StoreError as error:
                self.wrong.append(repr(error))


def test_reads_cut_short_never_answer_another_question(store: Store, stored: list[str]) -> None:
    victims = Victims(1)

    def read() -> None:
        wanted = victims.chance.sample(stored, 3)
        found = store.fetch(INSTANCES, [(uuid,) for uuid in wanted])
        if sorted(key[0] for key in found) != sorted(wanted):
            victims.wrong.append(f"asked for {wanted}, found {list(found)}")

    for _ in range(ROUNDS):
        victims.run(read, 0.02)
    assert not victims.wrong, victims.wrong[:3]
    assert victims.ended_well > ROUNDS
    assert victims.cut_short > ROUNDS
    readers = [gevent.spawn(store.fetch, INSTANCES, [(uuid,)]) for uuid in stored]
    gevent.joinall(readers, timeout=10, raise_error=True)
    assert all(reader.value for reader in readers), "every place in the pool was given back"


def test_transactions_cut_short_are_whole_or_not_at_all(store: Store) -> None:
    """An address and its map version change together, or neither does."""
    store.register(conductor(), 1)
    victims = Victims(2)
    version = store.read_map().map_version
    told: list[int] = []

    def readdress() -> None:
        told.append(store.readdress("con1", "con1-1", f"tcp://127.0.0.1:{victims.chance.randint(20_000, 30_000)}", "k"))

    for _ in range(ROUNDS // 4):
        victims.run(readdress, 0.05)
    assert not victims.wrong, victims.wrong[:3]
    assert len(told) == len(set(told)), "each has a version of its own"
    rows = store.read_map()
    assert rows.map_version >= max([version, *told])
    last = store.readdress("con1", "con1-1", "tcp://127.0.0.1:20001", "k")
    assert last == rows.map_version + 1
    assert store.read_map().conductors["con1"].address == "tcp://127.0.0.1:20001"


@on_mariadb
def test_connections_of_the_dead_do_not_stay_at_the_server(store: Store, stored: list[str]) -> None:
    victims = Victims(3)
    for _ in range(ROUNDS // 2):
        victims.run(lambda: store.ping(), 0.01)
    target = parse_url(store.url)
    assert isinstance(target, MariaDbTarget)
    own = Connection(target)
    with gevent.Timeout(5):
        while len(own.rows(b"SELECT id FROM information_schema.processlist WHERE db = DATABASE()")) > CONNECTIONS_MAX:
            gevent.sleep(0.01)
    own.cut()
