"""The steps of moves: thin I/O round the decisions of walk. No step is written for one kind of move."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
import msgspec

from zcompute.bus.errors import BusError
from zcompute.conductor.tasks.build_walk import begin_attempt, claim_refused, refusal_reason
from zcompute.conductor.tasks.charge import OUTBOX_RESIZED
from zcompute.conductor.tasks.decision import Decision, count_as_clean, counts_as_clean
from zcompute.conductor.tasks.moves import shelving, walk
from zcompute.conductor.tasks.moves.plans import (
    PLANS,
    STEP_ACTIVATE,
    STEP_BUILD,
    STEP_CHECK_FENCE,
    STEP_CLAIM,
    STEP_CLEAN_DESTINATION,
    STEP_CLEAN_SOURCE,
    STEP_FINISH,
    STEP_GRANT,
    STEP_HOLD,
    STEP_LEAVE,
    STEP_MIGRATE,
    STEP_POWER_OFF,
    STEP_POWER_ON,
    STEP_PREPARE,
    STEP_PREPARED,
    STEP_REOPEN,
    STEP_ROLLED_BACK,
    STEP_SCHEDULE,
    STEP_SEND,
    STEP_SENT,
    STEP_SHUT_DOWN,
    STEP_SNAPSHOT,
    STEP_SPAWN,
    STEP_SWITCH,
    STEP_SWITCH_BACK,
    STEP_UNDO_BUILD,
    STEP_UNDO_PREPARE,
    STEP_UNDO_SEND,
    STEP_UNDO_SHUT_DOWN,
    host_of_step,
)
from zcompute.conductor.tasks.moves.reach import Reach
from zcompute.conductor.tasks.placing import claim_present, select_hosts
from zcompute.conductor.tasks.run import Step, TaskRun, TaskWaits
from zcompute.conductor.tasks.telling import Refuse, Telling, tell
from zcompute.objects.command import (
    VERB_ABORT,
    VERB_ACTIVATE,
    VERB_COMPLETE,
    VERB_MIGRATE,
    VERB_PREPARE,
    VERB_REOPEN,
    VERB_SEND,
    VERB_SNAPSHOT,
    VERB_START,
    VERB_STOP,
    AdoptRequest,
    DestroyRequest,
    Order,
    SpawnRequest,
    StepRequest,
)
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import POWER_RUNNING, POWER_SHUTDOWN, VM_ACTIVE, VM_STOPPED, Instance
from zcompute.objects.interface import Method
from zcompute.objects.methods import ADOPT, DESTROY, SPAWN, STEP
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

NO_VALID_HOST = "No valid host was found. "


class Schedule:
    """Ask a scheduler for candidates, or take the host that was asked for; without any the move is rolled back."""

    name = STEP_SCHEDULE
    commands_hosts = False
    ends = False

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        body = run.now_task().body
        if body.reschedules > run.settings.reschedules_max:
            self._give_up(run, f"tried {len(body.refused)} hosts; {refusal_reason(body, {})}")
            return
        ignored = {*body.refused, *([body.source] if body.source else [])}
        if body.destination:
            hosts, reasons = [body.destination] if body.destination not in ignored else [], {}
        else:
            found = select_hosts(run, walk.flavor_of(run.instance, run.now_task()).amounts(), ignored)
            hosts, reasons = found.hosts, dict(found.reasons)
        if hosts:
            run.journal(lambda _, task, __: begin_attempt(task, hosts))
        else:
            self._give_up(run, refusal_reason(body, reasons))

    def _give_up(self, run: TaskRun, reason: str) -> None:
        log.info("no host for a move uuid=%s kind=%s reason=%s", run.uuid, run.now_task().kind, reason)
        _journal(
            run, lambda instance, task, now_us, s: walk.roll_back(instance, task, NO_VALID_HOST + reason, now_us, s)
        )


class Claim:
    """Room at the destination, by the dialogue of builds."""

    name = STEP_CLAIM
    commands_hosts = False
    ends = False

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        task = run.now_task()
        reply = claim_present(run, walk.flavor_of(run.instance, task).amounts())
        if reply.granted:
            _journal(run, walk.claimed)
            return
        log.info("claim refused uuid=%s host=%s reason=%s", run.uuid, task.body.host, reply.reason)
        run.journal(lambda instance, task, _: claim_refused(instance, task, reply.reason))


class CheckFence:
    """The source is forced down still: an operator who lets it work again looks for tasks like this one before and
    after that commit, and this step looks after the task's own, so one of the two sees the other."""

    name = STEP_CHECK_FENCE
    commands_hosts = False
    ends = False

    def run(self, run: TaskRun) -> None:
        source = run.now_task().body.source or ""
        if source in run.env.forced_down([source]):
            _journal(run, walk.advance)
            return
        reason = f"host {source} is not forced down any more"
        log.warning("move given up uuid=%s: %s", run.uuid, reason)
        _journal(run, lambda instance, task, now_us, ending_s: walk.roll_back(instance, task, reason, now_us, ending_s))


@dataclass
class Commit:
    """A step that is its commit alone."""

    name: str
    decide: Callable[[Instance, Task, int, int], Decision]
    commands_hosts: bool = False
    ends: bool = False

    def run(self, run: TaskRun) -> None:
        _journal(run, self.decide)


@dataclass
class AwaitRoot:
    """The root's word is the next step: it alone knows what the other cell has done (zcompute.conductor.cell.crossing
    takes it). Without it the task is parked at its deadline, and the word carries it on."""

    name: str
    commands_hosts: bool = False
    ends: bool = False

    def run(self, run: TaskRun) -> None:
        run.left_ms(1)
        raise TaskWaits(f"task {run.task_id} waits for the root's word in step {self.name}")


@dataclass
class End:
    """Release what is owed, then the last commit."""

    name: str
    decide: Callable[[Instance, Task, int], Decision]
    commands_hosts: bool = False
    ends: bool = True

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        run.journal(self.decide, outbox_kind=OUTBOX_RESIZED)


Lost = Callable[[Instance, Task, int, int], Decision]
Failed = Callable[[Instance, Task, str, int, int], Decision]


@dataclass
class Command:
    """A verb, a spawn or a destroy at one of the move's hosts; its outcome comes as a report (moves.results).

    ``at`` is the source, else the destination. ``lost`` is decided when that host is forced down, ``too_old`` when its
    agent is of a release that knows no steps. ``grants``: the host reports the instance from now on. A step that is not
    ``needed`` is ``passed`` over; ``untold`` is decided when the host was told nothing, and is not linked for a while.
    """

    name: str
    method: Method
    make: Callable[[Order, Instance, Task], msgspec.Struct]
    lost: Lost
    too_old: Failed
    grants: bool = False
    needed: Callable[[Task], bool] = lambda _: True
    passed: Callable[[Instance, Task, int, int], Decision] = walk.advance
    untold: Failed | None = None
    beside: Callable[[TaskRun], None] | None = None
    commands_hosts: bool = True
    ends: bool = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        if not self.needed(task):
            _journal(run, self.passed)
            return
        if task.body.failures:
            gevent.sleep(_pause_ms(run, task.body.failures) / 1000)
        ending_s = run.settings.ending_s_max
        telling = Telling(
            self.method,
            self.make,
            lambda instance, task, now_us: self.lost(instance, task, now_us, ending_s),
            _with_ending(self.too_old, ending_s),
            self.grants,
            None if self.untold is None else _with_ending(self.untold, ending_s),
            run.settings.link_wait_ms_max,
            self.beside,
        )
        tell(run, host_of_step(task), telling)


class GrantHost:
    """After a live migration: the destination runs it already, and reports it from now on."""

    name = STEP_GRANT
    commands_hosts = False  # the grant is an adoption itself
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        host = host_of_step(task)
        while run.is_at(task):
            run.changed.clear()
            if run.env.commands.has_way(host):
                self._grant(run, task, host)
                _journal(run, walk.advance)
                return
            if host in run.env.forced_down([host]):
                _journal(run, walk.host_is_lost)
                return
            run.wait(run.settings.resend_ms)

    @staticmethod
    def _grant(run: TaskRun, task: Task, host: str) -> None:
        order = run.env.commands.order(run.instance, task, host, reporter_generation=run.instance.generation)
        run.commanded.add(host)
        run.env.commands.send(
            host, ADOPT, AdoptRequest(order=order), timeout_ms=run.left_ms(run.settings.command_ms_max)
        )


def _end_where_asked(run: TaskRun) -> None:
    """Tell the source to abort, or to complete, the migration that it has under way, when somebody wants that. What
    comes of it is the migration's own result."""
    task = run.now_task()
    verb = VERB_ABORT if task.body.result else VERB_COMPLETE if task.body.complete else ""
    if not verb:
        return
    host = host_of_step(task)
    order = msgspec.structs.replace(run.env.commands.order(run.instance, task, host), step=verb)
    request = _step(verb, order, run.instance, task)
    try:
        run.env.commands.send(host, STEP, request, timeout_ms=run.left_ms(run.settings.command_ms_max))
    except (BusError, ServiceError) as error:
        log.info("%s not told uuid=%s host=%s error=%s", verb, run.uuid, host, error)


def _with_ending(failed: Failed, ending_s: int) -> Refuse:
    return lambda instance, task, reason, now_us: failed(instance, task, reason, now_us, ending_s)


def _pause_ms(run: TaskRun, failures: int) -> int:
    settings = run.settings
    return min(settings.retry_ms_max, settings.retry_ms_min << min(failures, 10))


def _journal(run: TaskRun, decide: Callable[[Instance, Task, int, int], Decision]) -> None:
    ending_s = run.settings.ending_s_max
    run.journal(lambda instance, task, now_us: decide(instance, task, now_us, ending_s))


# -- what is asked ------------------------------------------------------------------------------------------------


def _step(verb: str, order: Order, instance: Instance, task: Task, **arguments: Any) -> StepRequest:
    """``instance`` with the flavor that it is to have on that host."""
    given = msgspec.structs.replace(task.body.arguments, flavor=None, **arguments)
    return StepRequest(order=order, verb=verb, instance=instance, arguments=given)


def _prepare(order: Order, instance: Instance, task: Task) -> StepRequest:
    there = msgspec.structs.replace(instance, flavor=walk.flavor_of(instance, task))
    return _step(VERB_PREPARE, order, there, task, peer_host=task.body.source or "")


def _send(order: Order, instance: Instance, task: Task) -> StepRequest:
    answer = task.body.answers.get(STEP_PREPARE, {})
    peer_host = task.body.host or task.body.destination or ""  # the latter is of another cell
    return _step(VERB_SEND, order, instance, task, peer_host=peer_host, peer=answer)


def _migrate(order: Order, instance: Instance, task: Task) -> StepRequest:
    answer = task.body.answers.get(STEP_PREPARE, {})
    return _step(VERB_MIGRATE, order, instance, task, peer_host=task.body.host or "", peer=answer)


def _activate(order: Order, instance: Instance, task: Task) -> StepRequest:
    return _step(VERB_ACTIVATE, order, instance, task, power=_power_of(task))


def _reopen(order: Order, instance: Instance, task: Task) -> StepRequest:
    return _step(VERB_REOPEN, order, instance, task, power=_power_of(task))


def _power_off(order: Order, instance: Instance, task: Task) -> StepRequest:
    return _step(VERB_STOP, order, instance, task)


def _power_on(order: Order, instance: Instance, task: Task) -> StepRequest:
    return _step(VERB_START, order, instance, task)


def _snapshot(order: Order, instance: Instance, task: Task) -> StepRequest:
    return _step(VERB_SNAPSHOT, order, instance, task)


def _spawn(order: Order, instance: Instance, task: Task) -> SpawnRequest:
    """Of the image that has its disk, where it was shelved and does not run again yet."""
    made_of = instance.shelved_image_ref or instance.spec.image_ref
    spec = msgspec.structs.replace(instance.spec, image_ref=made_of)
    return SpawnRequest(order=order, instance=msgspec.structs.replace(instance, spec=spec))


def _destroy(order: Order, instance: Instance, task: Task) -> DestroyRequest:
    return DestroyRequest(order=order)


def _power_of(task: Task) -> int:
    """What it was before the move."""
    return POWER_SHUTDOWN if _was_stopped(task) else POWER_RUNNING


def _was_stopped(task: Task) -> bool:
    return task.body.former_vm_state == VM_STOPPED


def _is_up(task: Task) -> bool:
    return not _was_stopped(task)


def _ran(task: Task) -> bool:
    return task.body.former_vm_state == VM_ACTIVE


# -- what follows from an agent that is too old, or lost ----------------------------------------------------------


def _again(instance: Instance, task: Task, reason: str, now_us: int, ending_s: int) -> Decision:
    return walk.again(instance, task, reason)


def _destination_lost(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    return walk.prepare_failed(instance, task, f"host {task.body.host} was forced down", now_us, ending_s)


def _clean(then: Lost) -> Lost:
    """What a forced-down host was to destroy counts as destroyed, in two commits: see count_as_clean."""

    def decide(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
        host = host_of_step(task)
        if not counts_as_clean(task, host):
            return Decision(task=count_as_clean(task, [host]))
        return then(instance, task, now_us, ending_s)

    return decide


def _source_lost(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    return walk.roll_back(instance, task, f"host {task.body.source} was forced down", now_us, ending_s)


def _not_reached(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    return walk.call_off(instance, task, f"host {task.body.source} was forced down", now_us, ending_s)


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Schedule(),
        Claim(),
        Command(STEP_PREPARE, STEP, _prepare, _destination_lost, walk.prepare_failed, untold=walk.next_destination),
        Command(STEP_SEND, STEP, _send, _source_lost, walk.roll_back),
        Command(STEP_MIGRATE, STEP, _migrate, _source_lost, walk.roll_back, beside=_end_where_asked),
        Reach(),
        CheckFence(),
        AwaitRoot(STEP_HOLD),
        AwaitRoot(STEP_SENT),
        AwaitRoot(STEP_PREPARED),
        Commit(STEP_SWITCH, walk.switch),
        Commit(STEP_SWITCH_BACK, walk.switch_back),
        Command(STEP_ACTIVATE, STEP, _activate, walk.host_is_lost, _again, grants=True),
        GrantHost(),
        Command(STEP_SPAWN, SPAWN, _spawn, walk.host_is_lost, _again, grants=True),
        Command(STEP_POWER_OFF, STEP, _power_off, walk.host_is_lost, _again, needed=_was_stopped),
        Command(STEP_CLEAN_SOURCE, DESTROY, _destroy, _clean(walk.advance), _again),
        Command(STEP_CLEAN_DESTINATION, DESTROY, _destroy, _clean(walk.advance), _again),
        Command(STEP_REOPEN, STEP, _reopen, walk.host_is_lost, _again, grants=True),
        Command(STEP_UNDO_SEND, STEP, _reopen, walk.undone, _again, grants=True),
        Command(STEP_UNDO_PREPARE, DESTROY, _destroy, _clean(walk.undone), _again),
        Command(STEP_SHUT_DOWN, STEP, _power_off, _not_reached, walk.call_off, needed=_is_up, untold=walk.call_off),
        Command(STEP_SNAPSHOT, STEP, _snapshot, _source_lost, walk.roll_back),
        Commit(STEP_LEAVE, shelving.leave),
        Command(STEP_POWER_ON, STEP, _power_on, _not_reached, walk.call_off, untold=walk.call_off),
        Command(STEP_BUILD, SPAWN, _spawn, _destination_lost, walk.prepare_failed, untold=walk.next_destination),
        Command(STEP_UNDO_SHUT_DOWN, STEP, _power_on, walk.undone, _again, needed=_ran, passed=shelving.stays_down),
        Command(STEP_UNDO_BUILD, DESTROY, _destroy, _clean(walk.undone), _again),
        End(STEP_ROLLED_BACK, walk.rolled_back),
        End(STEP_FINISH, walk.finish),
    )
}

MOVES: dict[str, tuple[Step, ...]] = {
    kind: tuple(STEPS[name] for name in plan.all_steps) for kind, plan in PLANS.items()
}
