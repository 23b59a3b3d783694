"""The task engine: a runner greenlet for each task of the owned partitions, in order, bounded.

A task is in the table from its commit (or from the gain of its partition) to its end. Runners do the steps; results
of agents come in by ``applied``, after their commit. A runner that ends early leaves a task that is parked, lost, or
of a kind that this release does not know.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Iterable

import gevent

from zcompute.bus.context import request_id
from zcompute.bus.errors import Busy
from zcompute.conductor.change import Keys
from zcompute.conductor.tasks.adoption import adopt
from zcompute.conductor.tasks.build_walk import no_host_told
from zcompute.conductor.tasks.decision import Decision, Snapshot
from zcompute.conductor.tasks.expiry import expire
from zcompute.conductor.tasks.forgetting import Forgetting
from zcompute.conductor.tasks.ghosts import Ghosts
from zcompute.conductor.tasks.history import action_key
from zcompute.conductor.tasks.parked import ParkedSweep
from zcompute.conductor.tasks.run import DeadlinePassed, Step, TaskEnv, TaskLost, TaskRun, TaskWaits
from zcompute.conductor.tasks.steps import STEP_NAMES, step_of
from zcompute.db.tables import TASKS
from zcompute.measure import Measure, Spread
from zcompute.objects.instance import Instance
from zcompute.objects.task import TASK_BUILD, TASK_DELETE, Task

log = logging.getLogger(__name__)

PARK_TRIES_MAX = 100


class TaskEngine:
    """All tasks of the owned partitions. One an incarnation."""

    def __init__(self, env: TaskEnv) -> None:
        self._env = env
        self._runs: dict[str, TaskRun] = {}
        self._queue: deque[TaskRun] = deque()
        self._running: set[TaskRun] = set()
        self._attached: set[str] = set()
        self._forgetting = Forgetting(env)
        self.ghosts = Ghosts(env, self._forgetting)
        self._parked = ParkedSweep(env, lambda: list(self._runs.values()), self._look_again)
        self._stopped = False

    # -- for intake, reports and hosts ------------------------------------------------------------------------------

    @property
    def tasks(self) -> int:
        """How many are under way here, parked ones too."""
        return len(self._runs)

    def check_room(self) -> None:
        """Before a task is committed. Raises Busy at the limit of tasks."""
        if len(self._runs) >= self._env.settings.tasks_max:
            raise Busy(
                f"tasks_max ({self._env.settings.tasks_max}) tasks are under way here: try again later",
                retry_after_ms=self._env.settings.busy_retry_ms,
            )

    def begin(self, instance: Instance, task: Task, *, adopt: bool = False) -> None:
        """A task was committed (or read after a gain): run it. It replaces an older task of the instance."""
        former = self._runs.get(instance.uuid)
        if former is not None:
            if former.task_id == task.id:
                former.learn(Snapshot(instance, task))
                former.changed.set()
                self._queue_up(former)
                return
            self._drop(former)
        run = TaskRun(self._env, instance, task, adopt=adopt)
        self._runs[run.uuid] = run
        self._queue_up(run)

    def applied(self, snapshot: Snapshot) -> None:
        """The result of a step has been committed: wake the runner, or end it."""
        if snapshot.outbox is not None:
            self._env.owed(snapshot.outbox)
        instance = snapshot.instance
        run = self._runs.get(instance.uuid) if instance is not None else None
        if run is None:
            return
        run.learn(snapshot)
        run.changed.set()
        if run.task is None:
            self._forget_at_hosts(run)
            if run.greenlet is None:
                self._leave(run)
        elif not run.parked:
            self._queue_up(run)

    def task_keys(self, uuid: str) -> Keys:
        """The rows of the instance's task and of its operation, as far as the task is known here."""
        run = self._runs.get(uuid)
        return [] if run is None or run.task is None else [(TASKS, (run.task_id,)), action_key(run.task)]

    def named_hosts(self, uuid: str) -> list[str] | None:
        """The hosts that the instance's task names; None when no task of it is known here."""
        run = self._runs.get(uuid)
        return None if run is None or run.task is None else run.task.body.named_hosts

    def host_attached(self, host: str) -> None:
        """The host can be reached again: runners that wait for it go on, parked tasks are looked at once more."""
        self._attached.add(host)
        if len(self._attached) == 1:
            gevent.spawn(self._look_at_attached)

    def host_forced_down(self, host: str) -> None:
        """Nobody need wait for this host any more: runners go on, parked tasks end."""
        for run in list(self._runs.values()):
            if run.task is not None and host in run.task.body.named_hosts:
                run.changed.set()
                self._look_again(run)

    def _look_at_attached(self) -> None:
        """All hosts of one turn at once: an agent attaches a thousand, and tasks are many."""
        hosts, self._attached = self._attached, set()
        for run in list(self._runs.values()):
            if run.task is not None and not hosts.isdisjoint(run.task.body.named_hosts):
                run.changed.set()
                self._queue_up(run)

    def counts(self) -> tuple[int, int, int]:
        """(tasks, running, waiting)."""
        return len(self._runs), len(self._running), len(self._queue)

    def measures(self) -> Iterable[Measure | Spread]:
        """For the metrics."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        return self._env.measures.measures(tasks, known=STEP_NAMES, tasks_max=self._env.settings.tasks_max)

    # -- ownership --------------------------------------------------------------------------------------------------

    def gained(self, tasks: Iterable[tuple[Instance | None, Task]], gained_at: float | None = None) -> None:
        """Tasks read after a gain, of which we learnt at ``gained_at`` (monotonic). Those that have become known
        meanwhile are newer."""
        for instance, task in tasks:
            if instance is None:
                log.error("task without an instance task=%s uuid=%s", task.id, task.instance_uuid)
            elif task.instance_uuid not in self._runs:
                self.begin(instance, task, adopt=True)
                if gained_at is not None:
                    self._runs[task.instance_uuid].gained_at = gained_at

    def lose(self, partitions: Iterable[int]) -> None:
        """These partitions are others': their runners end where they are."""
        lost = set(partitions)
        for run in [run for run in self._runs.values() if run.partition in lost]:
            self._drop(run)
        self._start_next()

    def start(self) -> None:
        """Begin to forget, and to look at what is parked."""
        self._forgetting.start()
        self._parked.start()

    def stop(self) -> None:
        """End all runners where they are."""
        self._stopped = True
        for run in list(self._runs.values()):
            self._drop(run)
        self._queue.clear()
        self._forgetting.stop()
        self.ghosts.stop()
        self._parked.stop()

    # -- runners ----------------------------------------------------------------------------------------------------

    def _look_again(self, run: TaskRun) -> None:
        self._queue_up(run, even_if_parked=True)

    def _queue_up(self, run: TaskRun, *, even_if_parked: bool = False) -> None:
        """Run it when its turn comes, unless it runs or waits already, or is parked and nobody can be asked."""
        if self._stopped or run in self._running or run.queued or self._runs.get(run.uuid) is not run:
            return
        if run.task is None or (run.parked and not even_if_parked and not self._reachable(run.task)):
            return
        run.queued = True
        self._queue.append(run)
        self._start_next()

    def _reachable(self, task: Task) -> bool:
        return any(self._env.commands.has_way(host) for host in task.body.named_hosts)

    def _start_next(self) -> None:
        while self._queue and len(self._running) < self._env.settings.runners_max:
            run = self._queue.popleft()
            run.queued = False
            if self._runs.get(run.uuid) is not run:
                continue
            self._running.add(run)
            run.greenlet = gevent.spawn(self._run, run)

    def _run(self, run: TaskRun) -> None:
        try:
            step = None
            if run.task is not None:
                request_id.set(run.task.request_id or "-")
                step = step_of(run.task)
            run.set_deadline(at_least_s=run.settings.revival_s_max if _is_done_late(run, step) else 0.0)
            self._do_steps(run)
        finally:
            self._running.discard(run)
            run.greenlet = None
            if run.task is None:
                self._forget_at_hosts(run)
                self._leave(run)
            if not self._stopped:
                self._start_next()

    def _do_steps(self, run: TaskRun) -> None:
        """Step after step until the task ends, parks or is lost. A step that fails is begun again after a pause."""
        failures = 0
        while run.task is not None:
            task, was_parked = run.task, run.parked
            try:
                if not self._do_step(run, task):
                    return
                failures = 0
            except TaskLost:
                self._leave(run)  # a later gain finds it in the table again
                return
            except TaskWaits:
                if not run.parked:
                    gevent.spawn_later(max(0.0, run.deadline - time.monotonic()), self._queue_up, run)
                return
            except DeadlinePassed:
                if run.parked or self._park(run):
                    return
            except Exception as error:  # noqa: BLE001  # whatever went wrong, the task goes on or parks at its deadline
                failures += 1
                self._log_failure(run, task, error, failures)
                self._pause(run, failures)
            if was_parked and run.parked and run.task is task:
                return

    def _do_step(self, run: TaskRun, task: Task) -> bool:
        """False: a step that this release does not know; it stays for one that does."""
        step = step_of(task)
        if step is None:
            log.warning("unknown step left alone uuid=%s kind=%s step=%s", run.uuid, task.kind, task.step)
            return False
        run.left_ms(1)
        if run.adopt:
            if step.commands_hosts:
                adopt(run)
            run.adopt = False
            self._env.measures.resumed(run.gained_at)
            if not run.is_at(task):
                return True
        run.begun = task
        try:
            step.run(run)
        finally:
            run.begun = None
        return True

    def _pause(self, run: TaskRun, failures: int) -> None:
        settings = self._env.settings
        pause_ms = min(settings.retry_ms_max, settings.retry_ms_min << min(failures, 12))
        gevent.sleep(pause_ms * random.uniform(0.5, 1.0) / 1000)

    def _log_failure(self, run: TaskRun, task: Task, error: Exception, failures: int) -> None:
        level = logging.INFO if failures < 5 else logging.WARNING
        log.log(
            level, "step failed uuid=%s kind=%s step=%s attempt=%s failures=%s error=%s: %s",
            run.uuid, task.kind, task.step, task.attempt, failures, type(error).__name__, error,
        )  # fmt: skip

    def _park(self, run: TaskRun) -> bool:
        """At the deadline. The journal is tried again for as long as the partition is owned. False: there is a later
        deadline now, by a result or a delete that was committed meanwhile, or since nobody need be waited for: the
        task goes on."""
        for attempt in range(1, PARK_TRIES_MAX + 1):
            task = run.task
            if task is None:
                return True
            if not run.overdue:
                return False
            message = _silence(task)

            def decide(instance: Instance, task: Task, now_us: int, message: str = message) -> Decision:
                return expire(instance, task, message, now_us, run.settings.ending_s_max)

            try:
                if run.journal(decide):
                    outcome = "parked" if run.parked else "given up"
                    log.warning("task %s uuid=%s kind=%s step=%s", outcome, run.uuid, task.kind, task.step)
                    if run.parked:
                        self._env.measures.parked()
                        return True
            except TaskLost:
                self._leave(run)
                return True
            except Exception as error:  # noqa: BLE001  # the ledger is busy or its database away: try again
                self._log_failure(run, task, error, attempt)
                self._pause(run, attempt)
        return True

    def _forget_at_hosts(self, run: TaskRun) -> None:
        hosts, run.commanded = run.commanded, set()
        self._forgetting.add(run.instance, run.task_id, hosts)

    def _drop(self, run: TaskRun) -> None:
        """End a runner from outside; its task is replaced, or another conductor's."""
        self._leave(run)
        run.task = None
        self._running.discard(run)  # one that has not begun yet never comes to its own finally
        if run.greenlet is not None:
            run.greenlet.kill(block=False)

    def _leave(self, run: TaskRun) -> None:
        if self._runs.get(run.uuid) is run:
            del self._runs[run.uuid]


def _is_done_late(run: TaskRun, step: Step | None) -> bool:
    """Whether a step is begun however late it is: nothing but the end is left, or its hosts were commanded by a former
    owner. They may be linked to this one already, so nobody would ever wake the task if it parked unasked."""
    return step is not None and (step.ends or (run.adopt and step.commands_hosts))


def _silence(task: Task) -> str:
    """What the fault of a parked task says. An act, or a move, keeps the fault that the server had before it."""
    if task.body.fault is not None and task.kind in (TASK_BUILD, TASK_DELETE):
        return task.body.fault.message
    silent = [] if no_host_told(task) else [host for host in task.body.named_hosts if host not in task.body.destroyed]
    where = f": no answer from {', '.join(silent)}" if silent else ""
    return f"{task.kind} did not end before its deadline, in step {task.step}{where}"
