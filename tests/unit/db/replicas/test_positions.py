"""Positions compare by domain and sequence; lag and choice follow from them."""

from random import Random

import pytest

from zcompute.db.replicas.choice import Weighed, choose
from zcompute.db.replicas.lag import SAMPLE_GAP_S, SAMPLES_MAX, Samples
from zcompute.db.replicas.position import NOWHERE, BadPosition, later, parse_position


def test_a_position_covers_what_is_not_behind_it_in_any_domain() -> None:
    here = parse_position("0-1-100,5-2-7")
    assert here.covers(parse_position("0-1-100,5-2-7"))
    assert here.covers(parse_position("0-9-99"))  # whoever was the primary then
    assert here.covers(NOWHERE)
    assert not here.covers(parse_position("0-1-101"))
    assert not here.covers(parse_position("0-1-1,6-1-1"))
    assert not NOWHERE.covers(here)


def test_the_later_of_two_positions_covers_both() -> None:
    one, other = parse_position("0-1-100,5-2-7"), parse_position("0-1-90,5-2-8")
    both = later(one, other)
    assert both.covers(one)
    assert both.covers(other)
    assert later(one, parse_position("0-1-4")) is one
    assert parse_position(both.text) == both


@pytest.mark.parametrize("text", ["0-1", "x-1-1", "0-1-1-1", "0-1-"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(BadPosition, match="expected a position"):
        parse_position(text)


def samples(*at: tuple[float, int]) -> Samples:
    made = Samples()
    for at_s, sequence in at:
        made.add(at_s, parse_position(f"0-1-{sequence}"))
    return made


def test_age_counts_from_the_newest_question_whose_answer_has_been_applied() -> None:
    known = samples((10.0, 100), (11.0, 200), (12.0, 300))
    assert known.age_s(parse_position("0-1-250"), 12.5) == 1.5
    assert known.age_s(parse_position("0-1-300"), 12.5) == 0.5
    assert known.age_s(parse_position("0-1-99"), 12.5) is None


def test_behind_is_zero_for_who_has_all_that_is_known_and_else_counts_from_what_is_missing_first() -> None:
    known = samples((10.0, 100), (11.0, 200), (12.0, 300))
    assert known.behind_s(parse_position("0-1-300"), 12.5) == 0.0
    assert known.behind_s(parse_position("0-1-250"), 12.5) == 0.5
    assert known.behind_s(parse_position("0-1-1"), 12.5) == 2.5
    assert Samples().behind_s(parse_position("0-1-1"), 12.5) == 0.0


def test_samples_are_bounded_in_number_and_density_and_keep_the_newest() -> None:
    made = Samples()
    for number in range(10 * SAMPLES_MAX):
        made.add(number * SAMPLE_GAP_S / 5, parse_position(f"0-1-{number}"))
    assert len(made._samples) <= SAMPLES_MAX
    assert made.newest == parse_position(f"0-1-{10 * SAMPLES_MAX - 1}")
    made.add(0.0, parse_position("0-1-1"))  # an answer that came late
    assert made.newest == parse_position(f"0-1-{10 * SAMPLES_MAX - 1}")


def test_of_two_the_one_with_less_to_wait_for_is_chosen() -> None:
    draw = Random(1)
    assert choose([], draw) is None
    assert choose([Weighed(50, 3.0)], draw) == 0
    assert {choose([Weighed(4, 0.0), Weighed(1, 0.0)], draw) for _ in range(20)} == {1}
    assert {choose([Weighed(0, 0.09), Weighed(5, 0.0)], draw) for _ in range(20)} == {1}


def test_one_far_behind_is_chosen_for_lack_of_others_only() -> None:
    draw = Random(1)
    assert {choose([Weighed(0, 0.5), Weighed(900, 0.0)], draw) for _ in range(20)} == {1}
    assert {choose([Weighed(0, 0.5), Weighed(0, 0.4)], draw) for _ in range(20)} == {1}


def test_every_near_one_is_drawn_now_and_then() -> None:
    draw = Random(1)
    assert {choose([Weighed(0, 0.0)] * 3, draw) for _ in range(200)} == {0, 1, 2}
