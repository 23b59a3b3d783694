"""The checker of tasks finds each thing that cannot be, and nothing in what can."""

from loadtest.chaos.check import FAILED, LOST, Final, Note
from loadtest.chaos.check_tasks import (
    STUCK,
    TWO_COPIES,
    Ended,
    Tasks,
    check_tasks,
    metrics_of_tasks,
    once_only,
    reasons,
)
from loadtest.chaos.history import Asked, Fault
from zcompute.compute.virt.fake_log import OP_ARRIVE, OP_SPAWN, DomainLine
from zcompute.objects.history import RESULT_ERROR, RESULT_SUCCESS
from zcompute.objects.instance import POWER_SHUTDOWN

IDS = {"k": "op"}


def asked(**fields: object) -> Asked:
    values = {"t": 1.0, "ended": 2.0, "name": "migrate", "uuid": "u", "key": "k", "accepted": True}
    return Asked(**{**values, **fields})


def ended(result: str = RESULT_SUCCESS, message: str = "", *, finished: bool = True) -> Tasks:
    return Tasks(operations={("u", "op"): Ended("migrate", finished, result, message)})


def kinds(events: list[Asked], tasks: Tasks) -> list[str]:
    return [violation.kind for violation in check_tasks(events, tasks, IDS)]


def test_what_is_done_refused_or_told_as_failed_is_fine() -> None:
    assert kinds([asked()], ended()) == []
    assert kinds([asked()], ended(RESULT_ERROR, "the server was deleted meanwhile")) == []
    assert kinds([asked(accepted=False, refused=True), asked(accepted=False, unknown=True)], Tasks()) == []


def test_what_was_accepted_and_is_not_known_not_over_or_failed_for_no_reason_is_found() -> None:
    assert kinds([asked()], Tasks()) == [LOST]
    assert kinds([asked()], ended("", finished=False)) == [STUCK]
    assert kinds([asked()], ended(RESULT_ERROR)) == [FAILED]
    assert kinds([asked(accepted=False, outcome="status 500")], Tasks()) == [FAILED]


def test_tasks_and_servers_that_are_left_are_found() -> None:
    assert kinds([], Tasks(left=["migrate of u is running in send"], busy=["u"])) == [STUCK, STUCK]


def test_a_server_on_two_hosts_is_found_and_a_stopped_copy_is_not() -> None:
    there = [("h1", DomainLine(op=OP_SPAWN, uuid="u", at=1)), ("h2", DomainLine(op=OP_ARRIVE, uuid="u", at=2))]
    assert kinds([], Tasks(lines=there)) == [TWO_COPIES]
    there.insert(1, ("h1", DomainLine(op="send", uuid="u", at=1, power_state=POWER_SHUTDOWN)))
    assert kinds([], Tasks(lines=there)) == []


def test_only_the_ends_of_builds_and_deletes_are_told_once() -> None:
    notes = [Note(1, 1, "instance.power_off.start", "u"), Note(1, 2, "instance.create.end", "u")]
    notes.append(Note(1, 3, "instance.update", "u", ("a",), ("b",)))
    kept = once_only(Final(rows={}, notes=notes)).notes
    assert [note.event_type for note in kept] == ["instance.exists", "instance.create.end", "instance.update"]


def test_what_came_of_it_is_counted() -> None:
    uuid = "8eb5d51d-2297-41b1-bb1a-8569eff55917"
    failed = Tasks(operations={(uuid, "op"): Ended("migrate", True, RESULT_ERROR, f"{uuid} on c1-host-05 was lost")})
    events = [asked(uuid=uuid), asked(accepted=False, refused=True), Fault(t=1.0, name="kill", victim="c")]
    found = metrics_of_tasks(events, failed, IDS)
    assert (found["asked"], found["accepted"], found["told_failed"], found["refused"]) == (2, 1, 1, 1)
    assert (found["accepted_migrate"], found["faults_kill"], found["done"]) == (1, 1, 0)
    assert reasons(events, failed, IDS) == {"migrate: _ on _ was lost": 1}
