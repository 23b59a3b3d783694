"""A cell that does not answer is not asked again until it does; one that is slow is."""

from zcompute.cells.gate import DOUBT_QUESTIONS, DOUBT_S, OPEN_MAX, Gate


def test_a_question_that_was_late_closes_the_gate_and_an_answer_opens_it() -> None:
    gate = Gate()
    assert gate.enter(0.0)
    assert gate.was_late(0.0, 5.0)
    gate.leave()
    assert gate.silent
    assert not gate.enter(5.1)
    assert (gate.open, gate.refused, gate.late) == (0, 1, 1)
    assert gate.answered(6.0)
    assert not gate.answered(6.1)
    assert gate.enter(6.2)


def test_one_late_question_among_answers_is_only_a_heavy_one() -> None:
    gate = Gate()
    gate.enter(0.0)
    gate.enter(4.0)
    gate.answered(4.1)
    gate.leave()
    assert not gate.was_late(0.0, 5.0)
    gate.leave()
    assert gate.enter(5.0)


def test_a_question_without_time_says_nothing() -> None:
    gate = Gate()
    gate.enter(0.0)
    assert not gate.was_late(0.0, 0.2)
    gate.leave()
    assert not gate.silent


def test_many_questions_without_an_answer_are_a_doubt_before_their_time_is_over() -> None:
    gate = Gate()
    for number in range(DOUBT_QUESTIONS):
        assert gate.enter(number / 100)
        assert not gate.in_doubt(number / 100)
    assert not gate.in_doubt(DOUBT_S - 0.01)
    assert gate.in_doubt(DOUBT_S)
    assert gate.enter(DOUBT_S)
    assert gate.was_not_answered(DOUBT_S, DOUBT_S + 1.0)
    assert gate.silent
    assert gate.late == 0
    assert not gate.in_doubt(10.0)


def test_a_doubt_is_over_with_any_answer() -> None:
    gate = Gate()
    for _ in range(DOUBT_QUESTIONS):
        gate.enter(0.0)
    gate.answered(1.5)
    assert not gate.in_doubt(2.0)
    assert not gate.was_not_answered(1.0, 2.0)
    assert gate.enter(2.0)


def test_a_slow_cell_that_answers_now_and_then_stays_open() -> None:
    gate = Gate()
    for second in range(60):
        for _ in range(DOUBT_QUESTIONS * 2):
            assert gate.enter(float(second))
        assert not gate.in_doubt(second + 0.9)
        gate.answered(second + 0.9)
        for _ in range(DOUBT_QUESTIONS * 2):
            gate.leave()
    assert not gate.silent


def test_few_questions_at_a_time_wait_as_long_as_they_may() -> None:
    gate = Gate()
    for second in range(10):
        assert gate.enter(second * 4.0)
        gate.leave()  # given up by its caller: no verdict on the cell
    assert not gate.silent


def test_open_questions_are_bounded_however_well_the_cell_does() -> None:
    gate = Gate()
    assert all(gate.enter(0.0) for _ in range(OPEN_MAX))
    assert not gate.enter(0.1)
    assert not gate.silent
    gate.answered(0.2)
    gate.leave()
    assert gate.enter(0.3)
