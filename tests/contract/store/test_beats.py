"""Beats come from a native thread, whatever the hub does."""

from collections.abc import Callable
from typing import Any

import gevent
from gevent.monkey import get_original

from tests.contract.store.conftest import conductor
from tests.unit.conductor.ledger_world import wait_for
from zcompute.db.store import KIND_MARIADB, Store

_start_thread = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")
_sleep = get_original("time", "sleep")


class BeatThread:
    """Beats until it is stopped, or until ``beats`` have been tried."""

    def __init__(self, beater: Any, beats: int) -> None:
        self.results: list[bool] = []
        self._beater = beater
        self._beats = beats
        self._done = _allocate_lock()
        self._done.acquire()
        _start_thread(self._run, ())

    def _run(self) -> None:
        try:
            for _ in range(self._beats):
                self.results.append(self._beater.beat())
        finally:
            self._done.release()

    def join(self) -> None:
        """Blocks the whole process, hub included, as a busy greenlet would."""
        assert self._done.acquire(timeout=20)


def test_a_beat_raises_the_counter(store: Store) -> None:
    store.register(conductor(), 1)
    beater = store.open_beater("con1-1")
    BeatThread(beater, 1).join()
    assert store.read_beats() == {"con1-1": 1}
    BeatThread(beater, 4).join()
    assert store.read_beats() == {"con1-1": 5}
    beater.close()


def test_beats_go_on_while_the_hub_is_blocked(store: Store) -> None:
    store.register(conductor(), 1)
    beater = store.open_beater("con1-1")
    beating = BeatThread(beater, 20)
    beating.join()
    assert beating.results == [True] * 20
    assert store.read_beats() == {"con1-1": 20}
    beater.close()


def test_beats_and_greenlets_share_the_database(store: Store) -> None:
    store.register(conductor(), 1)
    beater = store.open_beater("con1-1")
    readers = [gevent.spawn(lambda: [store.read_map() for _ in range(20)]) for _ in range(12)]
    beating = BeatThread(beater, 30)
    gevent.joinall(readers, timeout=30, raise_error=True)
    beating.join()
    assert all(reader.successful() for reader in readers)
    assert beating.results == [True] * 30
    beater.close()


def test_the_server_knows_whether_the_session_of_a_beat_lives(store: Store) -> None:
    store.register(conductor(), 1)
    store.register(conductor("con2"), 1)
    both = ["con1-1", "con2-1"]
    assert store.attended(both) == set()
    assert store.attended([]) == set()
    beater = store.open_beater("con1-1")
    BeatThread(beater, 1).join()
    known = {"con1-1"} if store.kind == KIND_MARIADB else set()  # a file knows no sessions
    assert store.attended(both) == known
    beater.close()  # as the kernel does when the process is killed: no goodbye
    wait_for(lambda: store.attended(both) == set())
    BeatThread(beater, 2).join()
    assert store.attended(both) == known
    beater.close()


def test_a_beat_of_one_declared_dead_says_so(store: Store) -> None:
    store.register(conductor(), 1)
    beater = store.open_beater("con1-1")
    store.take_over(["con1-1"], store.register(conductor("con2"), 1), 1)
    beating = BeatThread(beater, 1)
    beating.join()
    assert beating.results == [False]
    beater.close()


def test_a_beat_without_a_database_says_so(
    new_url: Callable[[str], str], open_at: Callable[[str], Store], flavour: str
) -> None:
    url = "sqlite:////nonexistent/x.db" if "sqlite" in flavour else "mysql://nobody:x@127.0.0.1:19999/none"
    beating = BeatThread(open_at(url).open_beater("con1-1"), 2)
    beating.join()
    assert beating.results == [False, False]
