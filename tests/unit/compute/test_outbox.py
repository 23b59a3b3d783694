from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zcompute.compute.errors import ObservationsFull, ResultsFull
from zcompute.compute.outbox import Outbox
from zcompute.compute.settings import Settings
from zcompute.objects.report import OUTCOME_DONE, Observation, StepResult


def seen(uuid: str = "a", host: str = "node1", power_state: int = 1) -> Observation:
    return Observation(instance_uuid=uuid, host=host, generation=1, power_state=power_state)


def result(uuid: str = "a", attempt: int = 1, **changes: Any) -> StepResult:
    values: dict[str, Any] = {"host": "node1", "generation": 1, "task_id": "t", "step": "s", "outcome": OUTCOME_DONE}
    return StepResult(instance_uuid=uuid, attempt=attempt, **(values | changes))


def test_the_newest_observation_folds_the_older_and_results_are_kept_in_order(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    first, folded = outbox.observe(seen(power_state=1))
    assert folded is None
    outbox.add_result(result(attempt=1))
    newest, folded = outbox.observe(seen(power_state=4))
    assert folded == first.seq
    outbox.add_result(result(attempt=2))
    assert [entry.seq for entry in outbox.entries()] == [2, newest.seq, 4]
    assert [body.attempt for body in outbox.results()] == [1, 2]


def test_a_result_that_is_owed_is_owed_once_and_again_after_it_was_forgotten(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    entry = outbox.add_result(result())
    assert entry is not None
    assert outbox.add_result(result()) is None
    outbox.forget([entry.seq])
    again = outbox.add_result(result())
    assert again is not None
    assert again.seq > entry.seq


def test_sequences_rise_over_restarts_even_when_nothing_is_owed(tmp_path: Path) -> None:
    settings = Settings(compact_bytes_min=300)
    outbox = Outbox(tmp_path / "outbox", settings)
    for _ in range(50):
        entry, _ = outbox.observe(seen())
        outbox.forget([entry.seq])
    outbox.close()
    again = Outbox(tmp_path / "outbox", settings)
    assert len(again) == 0
    assert again.observe(seen())[0].seq == 51


def test_the_limits_refuse_and_folding_needs_no_room(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings(observations_max=1, results_max=1))
    outbox.observe(seen("a"))
    outbox.observe(seen("a", power_state=4))
    with pytest.raises(ObservationsFull):
        outbox.observe(seen("b"))
    assert outbox.results_room() == 1
    outbox.add_result(result("a"))
    assert outbox.results_room() == 0
    with pytest.raises(ResultsFull):
        outbox.add_result(result("b"))


def test_a_retracted_observation_is_owed_no_more(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    entry, _ = outbox.observe(seen())
    assert outbox.retract("node1", "a") == entry.seq
    assert outbox.retract("node1", "a") is None
    assert len(outbox) == 0


def folds(outbox: Outbox, *powers: int) -> list[int]:
    """What each of these observations counts as untold."""
    found = []
    for power_state in powers:
        body = outbox.body(outbox.observe(seen(power_state=power_state))[0].seq)
        assert isinstance(body, Observation)
        found.append(body.folded)
    return found


def test_what_is_folded_is_counted_where_it_was_another_power_state(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    assert folds(outbox, 1, 1, 4, 4, 1, 3) == [0, 0, 1, 1, 2, 3]
    outbox.close()
    again = Outbox(tmp_path / "outbox", Settings())
    assert folds(again, 3, 1) == [3, 4], "the count outlives the process"
    again.forget([entry.seq for entry in again.entries()])
    assert again.events_folded == 4
    assert folds(again, 4) == [0]


def test_more_of_a_state_that_was_told_is_nothing_untold(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    outbox.forget([outbox.observe(seen(power_state=1))[0].seq])
    assert folds(outbox, 1, 4) == [0, 0]


def test_what_was_folded_on_its_way_and_arrived_was_told(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    sent, _ = outbox.observe(seen(power_state=1))
    newer, folded = outbox.observe(seen(power_state=4), sent.seq)
    assert folded == sent.seq
    assert outbox.told("a", 99) is None
    counted = outbox.told("a", sent.seq)
    assert counted is not None
    entry, former = counted
    assert (former, entry.seq) == (newer.seq, newer.seq + 1), "what went out under a sequence never changes"
    assert outbox.body(entry.seq) == seen(power_state=4)
    assert [each.seq for each in outbox.entries()] == [entry.seq]
    assert outbox.told("a", sent.seq) is None
    assert folds(outbox, 1) == [1]


def test_what_is_remembered_of_answers_is_bounded(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings(observations_max=3))
    for number in range(10):
        outbox.forget([outbox.observe(seen(f"i{number}"))[0].seq])
    assert list(outbox._told) == [("node1", f"i{number}") for number in (7, 8, 9)]


def test_what_is_on_its_way_itself_keeps_its_count(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Settings())
    sent, _ = outbox.observe(seen(power_state=1))
    newer, _ = outbox.observe(seen(power_state=4), sent.seq)
    assert outbox.told("a", sent.seq, newer.seq) is None
    assert [entry.seq for entry in outbox.entries()] == [newer.seq]


class OutboxOverRestarts(RuleBasedStateMachine):
    """What a restart finds is what was owed before it; sequences only rise."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.path = self.directory / f"outbox-{id(self)}"
        self.path.unlink(missing_ok=True)
        self.limits = Settings(compact_bytes_min=400)
        self.outbox = Outbox(self.path, self.limits)
        self.highest = 0

    def note(self, seq: int) -> None:
        assert seq > self.highest
        self.highest = seq

    @rule(uuid=st.sampled_from("abc"), host=st.sampled_from(["node1", "node2"]), power=st.integers(0, 4))
    def observe(self, uuid: str, host: str, power: int) -> None:
        self.note(self.outbox.observe(seen(uuid, host, power))[0].seq)

    @rule(uuid=st.sampled_from("abc"), attempt=st.integers(1, 3))
    def result(self, uuid: str, attempt: int) -> None:
        entry = self.outbox.add_result(result(uuid, attempt))
        if entry is not None:
            self.note(entry.seq)

    @precondition(lambda self: len(self.outbox) > 0)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        seqs = [entry.seq for entry in self.outbox.entries()]
        self.outbox.forget(data.draw(st.lists(st.sampled_from(seqs), unique=True)))

    @rule()
    def restart(self) -> None:
        owed = list(self.outbox.entries())
        self.outbox.close()
        self.outbox = Outbox(self.path, self.limits)
        assert list(self.outbox.entries()) == owed

    @invariant()
    def observations_are_folded(self) -> None:
        keys = [(entry.host, entry.key) for entry in self.outbox.entries()]
        assert len(keys) - len(self.outbox.results()) <= 6

    def teardown(self) -> None:
        self.outbox.close()


def test_the_outbox_over_restarts(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    OutboxOverRestarts.directory = tmp_path
    run_state_machine_as_test(
        OutboxOverRestarts, settings=hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)
    )
