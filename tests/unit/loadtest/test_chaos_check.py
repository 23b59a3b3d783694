"""The checker of the chaos runs: a good history passes, each crafted bad one is named for what it is."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from loadtest.chaos import check as checker
from loadtest.chaos.check import Final, Note, Row, check
from loadtest.chaos.history import Answer, Command, Domain, Event, Fault, Operation, Read, Report
from loadtest.chaos.measure import costs, downtime, metrics

ACTIVE = ("active", None, "running")
PAUSED = ("active", None, "paused")
NEW = (None, None, None)


def report(t: float, seq: int, value: int, folds: int = 0, uuid: str = "u", life: int = 1, kind: str = "") -> Report:
    made = Report(t=t, agent="a", life=life, uuid=uuid, seq=seq, value=value, folds=folds)
    if kind:
        made.kind = kind
    return made


def answer(t: float, seq: int, verdict: str = "applied", peer: str = "c1", uuid: str = "u") -> Answer:
    return Answer(t=t, agent="a", life=1, uuid=uuid, seq=seq, verdict=verdict, peer=peer)


def command(t: float, epoch: int, generation: int, *, known: int = 0, obeyed: bool = True) -> Command:
    return Command(
        t=t, agent="a", host="h", uuid="u", name="spawn", partition=3, owner_epoch=epoch, generation=generation,
        task_id="t", step="spawn", attempt=1, known_epoch=known, obeyed=obeyed,
    )  # fmt: skip


def rows(value: int, state: checker.State = ACTIVE) -> dict[str, Row]:
    return {"u": Row(value, False, state)}


def kinds(events: Iterable[Event], final: Final) -> set[str]:
    return {violation.kind for violation in check(sorted(events, key=lambda event: event.t), final)}


GOOD: list[Event] = [
    report(1.0, 1, 10),
    answer(1.1, 1),
    Read(t=1.2, ended=1.3, values={"u": 10}),
    report(2.0, 2, 20),
    report(2.1, 3, 30, folds=2),
    answer(2.2, 3, "not_owner"),
    answer(2.3, 3, peer="c2"),
    answer(2.4, 3, "already_there", peer="c2"),
    Read(t=2.25, ended=2.5, values={"u": 30}),
    Operation(t=0.5, ended=0.9, name="boot", uuid="u", outcome="ok"),
    command(0.6, 5, 1),
    command(0.7, 4, 1, obeyed=False),
    Domain(t=0.7, host="h", uuid="u", op="spawn", generation=1),
    report(9.0, 4, 40),
    answer(9.1, 4),
]
NOTES = [
    Note(1, 1, "instance.create.start", "u"),
    Note(1, 2, "instance.update", "u", NEW, ACTIVE),
    Note(1, 3, "instance.update", "u", ACTIVE, PAUSED),
    Note(1, 4, "instance.update", "u", PAUSED, ACTIVE),
]
FINAL = Final(rows=rows(40), notes=NOTES, last_n={1: 4, 2: 0}, actions=[("u", "create")])


def test_a_good_history_passes() -> None:
    assert not check(sorted(GOOD, key=lambda event: event.t), FINAL)


def test_what_was_acknowledged_and_is_not_there_is_lost() -> None:
    assert checker.LOST in kinds(GOOD, replace(FINAL, rows=rows(39)))
    assert checker.LOST in kinds(GOOD, replace(FINAL, rows={}))


def test_what_is_owed_and_never_answered_is_lost() -> None:
    assert kinds([*GOOD, report(3.0, 7, 35), report(12.0, 8, 45), answer(12.1, 8)], FINAL) >= {checker.LOST}
    results = [report(3.0, 7, 0, kind="result"), report(12.0, 8, 45), answer(12.1, 8)]
    assert checker.LOST in kinds([*GOOD, *results], replace(FINAL, rows=rows(45)))


def test_the_last_report_before_a_kill_is_indeterminate() -> None:
    assert not kinds([*GOOD, report(12.0, 5, 50)], FINAL)
    assert not kinds([*GOOD, report(12.0, 5, 50)], replace(FINAL, rows=rows(50)))


def test_a_sequence_that_is_given_again_was_forgotten() -> None:
    again = [report(10.0, 1, 50, life=2), answer(10.1, 1), report(11.0, 2, 60, life=2), answer(11.1, 2)]
    assert checker.LOST in kinds([*GOOD, *again], replace(FINAL, rows=rows(60)))


def test_a_report_that_is_applied_twice_is_repeated_or_of_two_owners() -> None:
    assert kinds([*GOOD, answer(9.5, 4)], FINAL) == {checker.REPEATED}
    assert kinds([*GOOD, answer(9.5, 4, peer="c2")], FINAL) == {checker.STALE_WRITER}


@pytest.mark.parametrize("value", [10, 33])
def test_a_read_behind_what_was_known_before_it_is_inverted(value: int) -> None:
    late = Read(t=4.0, ended=4.1, values={"u": value})
    assert checker.INVERTED in kinds([*GOOD, late], FINAL)


def test_a_read_behind_an_earlier_read_is_inverted() -> None:
    reads = [Read(t=9.0, ended=9.05, values={"u": 40}), Read(t=9.06, ended=9.07, values={"u": 30})]
    assert kinds([*GOOD, *reads], FINAL) == {checker.INVERTED}


@pytest.mark.parametrize(
    ("value", "ended", "inverted"),
    [(0, 9.2, False), (10, 9.2, True), (0, 9.05, True)],
    ids=["as the root had it", "something reported before", "the delete was over"],
)
def test_a_read_while_its_server_is_deleted_may_show_it_as_the_root_had_it(
    value: int, ended: float, inverted: bool
) -> None:
    delete = Operation(t=9.0, ended=ended, name="delete", uuid="u", outcome="ok")
    read = Read(t=9.1, ended=9.3, values={"u": value})
    assert (checker.INVERTED in kinds([*GOOD, delete, read], FINAL)) == inverted


def test_reads_that_overlap_an_acknowledgement_may_show_either() -> None:
    assert not kinds([*GOOD, Read(t=9.05, ended=9.2, values={"u": 30})], FINAL)


@pytest.mark.parametrize(("epoch", "generation"), [(4, 2), (6, 0)])
def test_a_command_of_an_older_owner_or_generation_that_is_obeyed_is_named(epoch: int, generation: int) -> None:
    assert kinds([*GOOD, command(5.0, epoch, generation)], FINAL) == {checker.DEAD_OWNER_OBEYED}
    assert kinds([*GOOD, command(5.0, 6, 2, known=7)], FINAL) == {checker.DEAD_OWNER_OBEYED}


def test_a_machine_that_is_made_twice_is_named() -> None:
    twice = Domain(t=5.0, host="h2", uuid="u", op="spawn", generation=2)
    assert kinds([*GOOD, twice], FINAL) == {checker.REPEATED}


def test_an_update_unseen_for_long_needs_a_fault() -> None:
    slow = [report(20.0, 5, 50), answer(26.0, 5)]
    final = replace(FINAL, rows=rows(50))
    assert kinds([*GOOD, *slow], final) == {checker.UNSEEN}
    assert not kinds([*GOOD, *slow, Fault(t=24.0, name="kill", victim="c1", undone=25.0, over=25.5)], final)


def test_an_operation_that_was_answered_is_so_and_one_that_timed_out_may_be_either() -> None:
    deleted = Operation(t=30.0, ended=31.0, name="delete", uuid="u", outcome="ok")
    assert checker.LOST in kinds([*GOOD, deleted], FINAL)
    assert not kinds([*GOOD, Operation(t=30.0, ended=31.0, name="delete", uuid="u")], FINAL)
    refused = Operation(t=30.0, ended=31.0, name="boot", uuid="", outcome="status 500: x")
    assert kinds([*GOOD, refused], FINAL) == {checker.FAILED}


def test_a_notification_missing_extra_or_twice_is_named() -> None:
    missing = replace(FINAL, notes=NOTES[:2] + NOTES[3:])
    assert kinds(GOOD, missing) == {checker.NOTIFICATION}
    extra = [*NOTES, Note(1, 5, "instance.update", "u", PAUSED, ACTIVE)]
    assert checker.REPEATED in kinds(GOOD, replace(FINAL, notes=extra, last_n={1: 5}))
    twice = [*NOTES, Note(1, 5, "instance.create.start", "u")]
    assert kinds(GOOD, replace(FINAL, notes=twice, last_n={1: 5})) == {checker.REPEATED}
    assert kinds(GOOD, replace(FINAL, rows=rows(40, PAUSED))) == {checker.NOTIFICATION}
    assert kinds(GOOD, replace(FINAL, actions=[("u", "create"), ("u", "create")])) == {checker.REPEATED}


def test_the_cost_of_a_fault_is_the_longest_wait_of_any_update_near_it() -> None:
    events: list[Event] = []
    for number in range(1, 200):
        t, late = number / 10, 0.8 if number == 101 else 0.01
        uuid = f"u{number % 20}"
        events += [report(t, number, number, uuid=uuid), answer(t + late, number, uuid=uuid)]
    events.append(Fault(t=10.05, name="kill", victim="c1", undone=10.5, over=11.0))
    events.sort(key=lambda event: event.t)
    found, base = costs(events)
    assert found[0].stall_s == pytest.approx(0.8, abs=0.2)
    assert max(base) == pytest.approx(0.01, abs=0.001)
    numbers = metrics(events)
    assert numbers["acknowledged"] == 199
    assert numbers["kills"] == 1
    assert 0.5 < numbers["mttr_s_kill"] < 1.0


def test_who_began_to_wait_just_before_a_fault_waits_for_that_one_only() -> None:
    events: list[Event] = []
    for number in range(1, 200):
        t, late = number / 10, 2.0 if number == 101 else 0.01
        uuid = f"u{number}"
        events += [report(t, number, number, uuid=uuid), answer(t + late, number, uuid=uuid)]
    events.append(Fault(t=8.05, name="kill", victim="c1", undone=8.5, over=9.0))
    events.append(Fault(t=10.12, name="all", victim="c1,c2", undone=10.5, over=12.0))
    events.sort(key=lambda event: event.t)
    kill, everything = costs(events)[0]
    assert kill.stall_s == pytest.approx(0.01, abs=0.001)
    assert everything.stall_s == pytest.approx(2.0, abs=0.001)


def test_a_cell_is_silent_between_the_last_acknowledgement_before_a_loss_and_the_first_after_it() -> None:
    events: list[Event] = [report(0.0, 1, 1)]
    events += [answer(t, number) for number, t in enumerate((1.0, 1.1, 2.9, 3.0, 4.5, 6.0), 1)]
    events += [Fault(t=1.2, name="promote", victim="c1", undone=2.5, over=4.0)]
    found = costs(sorted(events, key=lambda event: event.t))[0][0]
    assert found.silent_s == pytest.approx(1.8)
    assert found.undone_s == pytest.approx(1.3)


def test_downtime_is_the_time_in_which_nothing_is_acknowledged() -> None:
    assert downtime([0.0, 0.05, 0.15, 1.05], []) == pytest.approx(0.8)
