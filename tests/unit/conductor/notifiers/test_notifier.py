"""At least once, in order, never left out without a gap; a failing partition holds up no other."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.unit.conductor.ledger_world import World, wait_for
from tests.unit.conductor.notifiers.outlets import Outlets, names
from zcompute.db.tables import NOTIFIER_CURSORS
from zcompute.objects.notification import NotifierCursor


@pytest.fixture
def outlets() -> Iterator[Outlets]:
    made = Outlets()
    yield made
    made.close()


def cursor(outlets: Outlets, partition: int, name: str = "n") -> int | None:
    row: NotifierCursor | None = outlets.world.database.row(NOTIFIER_CURSORS, (partition, name))
    return None if row is None else row.n


def test_what_commits_is_delivered_in_order_and_the_cursor_follows(outlets: Outlets) -> None:
    _, sink = outlets.notifier()
    outlets.gain([7, 8])
    wait_for(lambda: cursor(outlets, 7) == cursor(outlets, 8) == 0)
    for n in range(1, 21):
        outlets.tell(7 + n % 2, f"e{n}")
    wait_for(lambda: cursor(outlets, 7) == cursor(outlets, 8) == 10)
    assert sink.numbers(7) == sink.numbers(8) == list(range(1, 11))
    assert sink.told[0].cell == "c1"
    assert sink.gaps == []


def test_a_new_notifier_begins_with_what_is_told_from_now_on(outlets: Outlets) -> None:
    outlets.gain([7])
    outlets.tell(7, "before")
    _, sink = outlets.notifier()
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 1)
    outlets.tell(7, "after")
    wait_for(lambda: names(sink.told) == ["after"])


def test_a_failing_partition_holds_up_no_other_and_is_made_good(outlets: Outlets) -> None:
    notifier, sink = outlets.notifier()
    sink.broken = {7}
    outlets.gain([7, 8])
    wait_for(lambda: cursor(outlets, 7) == 0)
    for n in range(12):
        outlets.tell(7, f"a{n}")
        outlets.tell(8, f"b{n}")
    wait_for(lambda: cursor(outlets, 8) == 12)
    wait_for(lambda: notifier.failed >= 3)
    assert cursor(outlets, 7) == 0
    assert sink.numbers(7) == []
    sink.broken = set()
    wait_for(lambda: cursor(outlets, 7) == 12)
    assert sink.numbers(7) == list(range(1, 13))


def test_a_delivery_whose_answer_was_lost_comes_again_whole(outlets: Outlets) -> None:
    _, sink = outlets.notifier()
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 0)
    sink.fail_next = 1
    outlets.tell(7, "a", "b")
    outlets.tell(7, "c")
    wait_for(lambda: cursor(outlets, 7) == 3)
    assert sink.numbers(7)[:2] == [1, 2]
    assert sorted(set(sink.numbers(7))) == [1, 2, 3]
    assert len(sink.numbers(7)) > 3


def test_the_next_owner_goes_on_at_the_cursor_and_leaves_nothing_out() -> None:
    world = World()
    former = Outlets(world)
    _, first = former.notifier()
    former.gain([7])
    wait_for(lambda: cursor(former, 7) == 0)
    former.tell(7, "a", "b")
    wait_for(lambda: cursor(former, 7) == 2)
    for notifier in former.notifiers:
        notifier.stop()
    former.tell(7, "c", "d")
    heir = Outlets(world)
    _, second = heir.notifier()
    heir.gain([7])
    wait_for(lambda: cursor(heir, 7) == 4)
    assert (first.numbers(7), second.numbers(7)) == ([1, 2], [3, 4])
    assert first.closed
    heir.close()


def test_what_the_retention_took_is_told_as_a_gap(outlets: Outlets) -> None:
    _, sink = outlets.notifier()
    sink.broken = {7}
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 0)
    for n in range(1, 13):
        outlets.tell(7, f"e{n}")
    outlets.world.ledger.commit(7, [], lambda change: change.purge(1, 5), timeout_ms=1000)
    sink.broken = set()
    wait_for(lambda: cursor(outlets, 7) == 12)
    assert sink.gaps == [(7, 1, 5)]
    assert sink.numbers(7) == list(range(6, 13))


def test_a_notifier_behind_everything_is_told_one_gap(outlets: Outlets) -> None:
    _, sink = outlets.notifier()
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 0)
    for notifier in outlets.notifiers:
        notifier.lost([7])
    outlets.tell(7, "a", "b", "c")
    outlets.feed.lost([7])
    outlets.world.ledger.commit(7, [], lambda change: change.purge(1, 3), timeout_ms=1000)
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 3)
    assert (sink.gaps, sink.told) == ([(7, 1, 3)], [])


def test_a_lost_partition_is_left_alone(outlets: Outlets) -> None:
    notifier, sink = outlets.notifier()
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 0)
    notifier.lost([7])
    outlets.tell(7, "a")
    outlets.tell(8, "b")
    assert (sink.told, cursor(outlets, 7)) == ([], 0)


def test_two_notifiers_have_cursors_of_their_own(outlets: Outlets) -> None:
    _, quick = outlets.notifier("quick")
    _, broken = outlets.notifier("broken")
    broken.broken = {7}
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7, "quick") == cursor(outlets, 7, "broken") == 0)
    outlets.tell(7, "a")
    wait_for(lambda: cursor(outlets, 7, "quick") == 1)
    assert cursor(outlets, 7, "broken") == 0
    assert (quick.numbers(7), broken.numbers(7)) == ([1], [])


def test_batches_stay_within_their_limit_and_cursors_only_rise(outlets: Outlets) -> None:
    _, sink = outlets.notifier(batch_max=2)
    sizes: list[int] = []
    deliver = sink.deliver
    sink.deliver = lambda batch: (sizes.append(len(batch)), deliver(batch))[1]  # type: ignore[method-assign]
    outlets.gain([7])
    wait_for(lambda: cursor(outlets, 7) == 0)
    for n in range(9):
        outlets.tell(7, f"e{n}")
    wait_for(lambda: cursor(outlets, 7) == 9)
    assert max(sizes) <= 2
    assert all(a <= b for a, b in pairwise(sink.numbers(7)))
