"""What is in memory, what is read from the table, and that the two make one sequence."""

from collections.abc import Iterator

import pytest

from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.notifiers.outlets import Outlets, names
from zcompute.objects.methods import STREAM_NOTIFICATIONS


@pytest.fixture
def outlets() -> Iterator[Outlets]:
    made = Outlets()
    made.gain()
    yield made
    made.close()


def test_streams_carry_what_commits_under_its_n(outlets: Outlets) -> None:
    outlets.tell(7, "a", "b")
    outlets.tell(8, "c")
    outlets.tell(7, "d")
    stream = outlets.publisher.streams.get((STREAM_NOTIFICATIONS, "7"))
    assert stream is not None
    assert (stream.first, stream.next, stream.roles) == (1, 4, frozenset({"api", "operator"}))
    assert outlets.feed.head(7) == 3
    assert names(outlets.feed.read(7, 0, 10)) == ["a", "b", "d"]


def test_what_memory_has_let_go_is_read_from_the_table_in_pages(outlets: Outlets) -> None:
    for n in range(1, 13):
        outlets.tell(7, f"e{n}")
    read: list[str] = []
    after = 0
    while after < 12:
        page = outlets.feed.read(7, after, 10)
        assert [told.n for told in page] == list(range(after + 1, after + len(page) + 1))
        read += names(page)
        after = page[-1].n
    assert read == [f"e{n}" for n in range(1, 13)]


def test_a_new_owner_publishes_from_where_the_former_stopped() -> None:
    world = World()
    former = Outlets(world)
    former.gain([7])
    former.tell(7, "a", "b")
    heir = Outlets(world)
    heir.gain([7])
    assert heir.feed.head(7) == 2
    former.tell(7, "c")
    stream = heir.publisher.streams.get((STREAM_NOTIFICATIONS, "7"))
    assert stream is not None
    assert (stream.first, stream.next) == (3, 4)
    assert names(heir.feed.read(7, 0, 10)) == ["a", "b", "c"]
    heir.close()


def test_a_partition_that_was_lost_is_not_published(outlets: Outlets) -> None:
    outlets.tell(7, "a")
    outlets.feed.lost([7])
    outlets.tell(7, "b")
    assert outlets.feed.head(7) is None
    assert outlets.publisher.streams.get((STREAM_NOTIFICATIONS, "7")) is None
    assert outlets.feed.gained([7]) == [7]
    assert outlets.feed.head(7) == 2


def test_a_gain_told_again_keeps_the_stream(outlets: Outlets) -> None:
    outlets.tell(7, "a")
    before = outlets.publisher.streams.get((STREAM_NOTIFICATIONS, "7"))
    outlets.gain([7])
    assert outlets.publisher.streams.get((STREAM_NOTIFICATIONS, "7")) is before
