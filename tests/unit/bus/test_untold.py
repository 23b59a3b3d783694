"""Links that owe word of what they received: looked at when it is due, once."""

from zcompute.bus.untold import Untold


def test_a_link_is_looked_at_when_its_word_is_due_and_not_before() -> None:
    untold: Untold[str] = Untold()
    untold.add("a", 2.0)
    untold.add("b", 1.0)
    assert untold.take(0.9) == []
    assert untold.take(1.5) == ["b"]
    assert untold.take(2.0) == ["a"]
    assert len(untold) == 0


def test_a_link_is_here_once_until_it_was_looked_at() -> None:
    untold: Untold[str] = Untold()
    for due in (3.0, 1.0, 2.0):
        untold.add("a", due)
    assert len(untold) == 1
    assert untold.take(2.0) == []
    assert untold.take(3.0) == ["a"]
    untold.add("a", 4.0)
    assert untold.take(4.0) == ["a"]
    untold.add("a", 5.0)
    untold.clear()
    assert untold.take(9.0) == []
