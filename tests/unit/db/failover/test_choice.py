"""Which server is the primary: the one that takes writes in the highest term that anybody has seen."""

from zcompute.db.failover.choice import Sighting, choose_primary

CELL = "c1"


def primary(name: str, term: int = 1, cell: str = CELL) -> Sighting:
    return Sighting(name, 1, True, cell, term)


def replica(name: str, term: int = 1) -> Sighting:
    return Sighting(name, 2, False, CELL, term)


def gone(name: str) -> Sighting:
    return Sighting(name, problem="no answer")


def test_the_only_one_that_takes_writes_is_the_primary() -> None:
    assert choose_primary([replica("a"), primary("b")], CELL, 0, None).name == "b"


def test_one_of_a_lower_term_is_refused_beside_the_new_primary() -> None:
    chosen = choose_primary([primary("a", 1), primary("b", 2)], CELL, 1, "a")
    assert (chosen.name, chosen.term) == ("b", 2)


def test_one_of_a_lower_term_is_refused_where_only_a_replica_has_the_new_one() -> None:
    chosen = choose_primary([primary("a", 1), replica("c", 2)], CELL, 1, "a")
    assert chosen.name is None
    assert "a (term 1): replaced, to be rebuilt" in chosen.reason


def test_one_of_a_lower_term_is_refused_where_nobody_is_left_who_has_the_new_one() -> None:
    chosen = choose_primary([primary("a", 1), gone("b")], CELL, 2, "b")
    assert (chosen.name, chosen.term) == (None, 2)


def test_of_two_in_one_term_the_present_one_stays_and_a_newcomer_takes_none() -> None:
    both = [primary("a"), primary("b")]
    assert choose_primary(both, CELL, 1, "b").name == "b"
    assert choose_primary(both, CELL, 1, None).name is None
    assert "found a, b" in choose_primary(both, CELL, 1, None).reason


def test_another_cells_server_is_none_of_ours_whatever_its_term() -> None:
    chosen = choose_primary([primary("a"), primary("b", 9, "c2")], CELL, 1, None)
    assert (chosen.name, chosen.term) == ("a", 1)


def test_replicas_alone_are_no_primary_and_each_is_named_with_its_reason() -> None:
    chosen = choose_primary([gone("a"), replica("b")], CELL, 1, "a")
    assert chosen.name is None
    assert chosen.reason == "no server takes writes: a: no answer; b: is read only"
