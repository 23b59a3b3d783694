"""Who comes while a question is under way shares the next one."""

import gevent
import pytest
from gevent.event import Event

from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.replicas.shared import Gathering


class Asked:
    """Answers each key with its double, once it is let."""

    def __init__(self) -> None:
        self.questions: list[list[int]] = []
        self.go = Event()
        self.error: Exception | None = None

    def ask(self, keys: list[int], ends_at_s: float) -> dict[int, int]:
        self.questions.append(keys)
        self.go.wait(5)
        if self.error is not None:
            raise self.error
        return {key: 2 * key for key in keys if key < 100}


def test_those_who_come_while_a_question_is_under_way_share_the_next() -> None:
    asked = Asked()
    gathering = Gathering(asked.ask, keys_max=100)
    first = gevent.spawn(gathering.get, 1, 5)
    gevent.idle()
    later = [gevent.spawn(gathering.get, key, 5) for key in (2, 3, 2, 200)]
    gevent.idle()
    assert asked.questions == [[1]]
    asked.go.set()
    assert [each.get(timeout=5) for each in (first, *later)] == [2, 4, 6, 4, None]
    assert asked.questions == [[1], [2, 3, 200]]
    assert (gathering.asked, gathering.shared, gathering.waiting) == (2, 5, 0)


def test_a_question_has_at_most_so_many_keys() -> None:
    asked = Asked()
    asked.go.set()
    gathering = Gathering(asked.ask, keys_max=2)
    waiting = [gevent.spawn(gathering.get, key, 5) for key in range(5)]
    assert [each.get(timeout=5) for each in waiting] == [0, 2, 4, 6, 8]
    assert [len(each) for each in asked.questions] == [2, 2, 1]


def test_an_error_reaches_those_who_share_the_question_and_nobody_else() -> None:
    asked = Asked()
    asked.error = ConnectionLost("gone")
    gathering = Gathering(asked.ask, keys_max=100)
    first = gevent.spawn(gathering.get, 1, 5)
    gevent.idle()
    asked.go.set()
    with pytest.raises(ConnectionLost):
        first.get(timeout=5)
    asked.error = None
    assert gathering.get(2, 5) == 4


def test_who_has_no_time_left_leaves_alone_and_is_not_asked_for() -> None:
    asked = Asked()
    gathering = Gathering(asked.ask, keys_max=100)
    first = gevent.spawn(gathering.get, 1, 5)
    gevent.idle()
    with pytest.raises(gevent.Timeout):
        gathering.get(2, 0.01)
    asked.go.set()
    assert first.get(timeout=5) == 2
    assert gathering.get(3, 5) == 6
    assert [2] not in asked.questions


def test_beyond_the_limit_of_waiters_the_answer_is_busy() -> None:
    asked = Asked()
    gathering = Gathering(asked.ask, keys_max=100, waiters_max=1)
    first = gevent.spawn(gathering.get, 1, 5)
    gevent.idle()
    with pytest.raises(DatabaseBusy, match="1 reads wait"):
        gathering.get(2, 5)
    asked.go.set()
    assert first.get(timeout=5) == 2


def test_to_fail_ends_all_waits_at_once_and_what_comes_later_is_asked_anew() -> None:
    asked = Asked()
    gathering = Gathering(asked.ask, keys_max=100)
    waiting = [gevent.spawn(gathering.get, 1, 5)]
    gevent.idle()
    waiting.append(gevent.spawn(gathering.get, 2, 5))
    gevent.idle()
    gathering.fail(ConnectionLost("away"))
    for each in waiting:
        with pytest.raises(ConnectionLost):
            each.get(timeout=5)
    asked.go.set()
    assert gathering.get(3, 5) == 6
