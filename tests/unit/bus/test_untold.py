"""Links that owe word of what they received: looked at when it is due, once."""

from zcompute.bus.untold import SLOT_S, Untold


def test_a_link_is_looked_at_when_its_word_is_due_and_not_before() -> None:
    untold: Untold[str] = Untold()
    untold.add("a", 2.0)
    untold.add("b", 1.0)
    assert untold.take(0.9) == []
    assert untold.take(1.0 + 2 * SLOT_S) == ["b"]
    assert untold.take(1.99) == []
    assert untold.take(2.0 + 2 * SLOT_S) == ["a"]
    assert len(untold) == 0


def test_a_link_is_here_once_until_it_was_looked_at() -> None:
    untold: Untold[str] = Untold()
    for due in (3.0, 1.0, 2.0):
        untold.add("a", due)
    assert len(untold) == 1
    assert untold.take(2.0) == []
    assert untold.take(3.0 + 2 * SLOT_S) == ["a"]
    untold.add("a", 4.0)
    assert untold.take(4.0 + 2 * SLOT_S) == ["a"]
    untold.add("a", 5.0)
    untold.clear()
    assert untold.take(9.0) == []


def test_those_due_first_are_looked_at_first_and_one_that_is_overdue_at_once() -> None:
    untold: Untold[str] = Untold()
    untold.add("late", 9.0)
    untold.add("early", 1.0)
    assert untold.take(20.0) == ["early", "late"]
    untold.add("overdue", 3.0)
    assert untold.take(20.0) == ["overdue"]
