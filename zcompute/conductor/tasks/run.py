"""One task under way: its rows as last committed, its journal, its waits."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import gevent
from gevent.event import Event
from gevent.pool import Pool

from zcompute.bus.errors import NotOwner
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.commands import Commands
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.schedulers import Schedulers
from zcompute.conductor.tasks.decision import Decision, Snapshot, apply, without_released
from zcompute.conductor.tasks.history import action_key
from zcompute.conductor.tasks.measures import TaskMeasures
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.db.tables import INSTANCES, ROOT_OUTBOX, TASKS
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.instance import Instance
from zcompute.objects.messages.groups import PlacementReleaseRequest
from zcompute.objects.messages.hosts import ReleaseRequest
from zcompute.objects.methods import GROUP_RELEASE, RELEASE
from zcompute.objects.partition import partition_of
from zcompute.objects.task import TASK_PARKED, ClaimName, Task

log = logging.getLogger(__name__)


class TaskError(Exception):
    """Root of this package's errors."""


class TaskLost(TaskError):
    """The instance's partition is another conductor's now: it carries on, this runner ends."""


class DeadlinePassed(TaskError):
    """The task's deadline is over."""


class TaskWaits(TaskError):
    """The step ends with a word from outside, which begins the task's runner again: none is needed until then."""


@dataclass
class TaskEnv:
    """What steps work with. ``forced_down`` tells which of some hosts are forced down, read at the primary;
    ``owed`` takes an outbox row that was just committed."""

    cell: str
    ledger: Ledger
    router: PartitionRouter
    commands: Commands
    schedulers: Schedulers
    forced_down: Callable[[Sequence[str]], set[str]]
    owed: Callable[[OutboxEntry], None]
    settings: TaskSettings
    measures: TaskMeasures = field(default_factory=TaskMeasures)


class Step(Protocol):
    """One step of a kind of task: idempotent, since it is begun again after every doubt and by every new owner."""

    name: str
    commands_hosts: bool  # a new owner adopts the instance at the named hosts before it goes on
    ends: bool  # all is decided and no host waited for: whoever comes to it late does it, and parks it only after that

    def run(self, run: "TaskRun") -> None:
        """Do the step and journal what follows; returning without having moved on means: once more."""


class TaskRun:
    """A task as its runner sees it. ``task`` None: it has ended, or was replaced."""

    def __init__(self, env: TaskEnv, instance: Instance, task: Task, *, adopt: bool = False) -> None:
        self.env = env
        self.uuid = task.instance_uuid
        self.partition = partition_of(self.uuid)
        self.task_id = task.id
        self.instance = instance
        self.task: Task | None = task
        self.begun: Task | None = None  # as it was when the step that is being done was begun
        self.adopt = adopt
        self.gained_at = time.monotonic()
        self.commanded: set[str] = set()
        self.own_attempt = 0  # the attempt whose spawn this very runner was the first to journal
        self.changed = Event()
        self.greenlet: gevent.Greenlet | None = None
        self.queued = False
        self.deadline = 0.0
        self._released: set[ClaimName] = set()

    @property
    def settings(self) -> TaskSettings:
        return self.env.settings

    @property
    def parked(self) -> bool:
        return self.task is not None and self.task.state == TASK_PARKED

    def set_deadline(self, *, at_least_s: float = 0.0) -> None:
        """From the row, or a short one for a parked task that is looked at again."""
        if self.task is None or self.parked:
            left_s = self.settings.revival_s_max
        else:
            left_s = max(at_least_s, (self.task.deadline_at_us - self.env.ledger.now_us()) / 1e6)
        self.deadline = time.monotonic() + left_s

    def now_task(self) -> Task:
        """The task; raises TaskLost when it has ended."""
        if self.task is None:
            raise TaskLost(f"task {self.task_id} has ended")
        return self.task

    def is_at(self, task: Task) -> bool:
        """Whether the task is still at this step and attempt."""
        now = self.task
        return now is not None and (now.step, now.attempt) == (task.step, task.attempt)

    # -- rows ------------------------------------------------------------------------------------------------------

    def journal(self, decide: Callable[[Instance, Task, int], Decision], *, outbox_kind: str | None = None) -> bool:
        """Commit a decision on the newest rows; False when the task was no longer at this step: nothing was done.
        A step decides for itself only: an operator's abort may have moved the task on while it asked somebody.

        ``decide(instance, task, now_us)`` is pure; one that writes an outbox row names its kind here. Raises TaskLost,
        and what the ledger raises (outcome unknown: the step is begun again).
        """
        present = self.now_task()
        expected = self.begun or present
        released = frozenset(self._released)
        uuid, task_id = self.uuid, self.task_id

        def on_rows(change: Change) -> tuple[bool, Snapshot]:
            former = Snapshot(change.get(INSTANCES, (uuid,)), change.get(TASKS, (task_id,)))
            instance, task = former.instance, former.task
            if instance is None or task is None or instance.task_id != task.id:
                return False, Snapshot(instance, None)
            if (task.step, task.attempt) != (expected.step, expected.attempt):
                return False, former
            decision = without_released(decide(instance, task, change.now_us), released)
            return True, apply(change, former, decision)

        keys: Keys = [(INSTANCES, (uuid,)), (TASKS, (task_id,)), action_key(expected)]
        if outbox_kind is not None:
            keys = [*keys, (ROOT_OUTBOX, (uuid, outbox_kind, self.instance.mapping_generation))]
        try:
            ticket = self.env.ledger.submit(self.partition, keys, on_rows)
            ticket.on_done(self._committed)
            done, snapshot = ticket.wait(self.settings.commit_ms_max)
        except NotOwner as error:
            raise TaskLost(str(error)) from error
        self.learn(snapshot)
        return bool(done)

    def _committed(self, ticket: Ticket) -> None:
        """Runs at the commit even when nobody waits for it any more: what is owed to the root must be sent."""
        if ticket.error is None and ticket.result[0] and ticket.result[1].outbox is not None:
            self.env.owed(ticket.result[1].outbox)

    def learn(self, snapshot: Snapshot) -> None:
        """Take newer rows over; older ones are ignored."""
        instance, task = snapshot.instance, snapshot.task
        if instance is not None and instance.revision >= self.instance.revision:
            self.instance = instance
        if task is None or task.id != self.task_id:
            if self.task is not None:
                self.env.measures.stepped(self.task, self.env.ledger.now_us())
            self.task = None
        elif self.task is not None and task.revision >= self.task.revision:
            former, self.task = self.task, task
            if (task.step, task.attempt) != (former.step, former.attempt):
                self.env.measures.stepped(former, self.env.ledger.now_us())
            if (task.state, task.deadline_at_us) != (former.state, former.deadline_at_us) and not self.parked:
                self.set_deadline()

    # -- time ------------------------------------------------------------------------------------------------------

    @property
    def overdue(self) -> bool:
        """Whether less than a millisecond is left."""
        return self.deadline - time.monotonic() < 0.001

    def left_ms(self, at_most_ms: int) -> int:
        """Milliseconds for the next call. Raises DeadlinePassed."""
        left = int((self.deadline - time.monotonic()) * 1000)
        if left <= 0:
            raise DeadlinePassed(f"task {self.task_id} is behind its deadline")
        return min(left, at_most_ms)

    def wait(self, timeout_ms: int) -> None:
        """Until something has changed (a result came, a host is back), at most so long. Raises DeadlinePassed."""
        self.changed.wait(self.left_ms(timeout_ms) / 1000)

    # -- what several steps do -------------------------------------------------------------------------------------

    def release_owed(self) -> None:
        """Release the claims that the task owes, each at its host's owner, and the places that were reserved with them
        at the owner of the instance's server group. Raises when one did not answer."""
        rule = self.instance.spec.group
        for name in self.now_task().body.release:
            if name in self._released:
                continue
            request = ReleaseRequest(
                instance_uuid=self.uuid, task_id=name.task_id, attempt=name.attempt, host=name.host
            )
            self.env.router.call(name.host, RELEASE, request, timeout_ms=self.left_ms(self.settings.claim_ms_max))
            if rule is not None:
                place = PlacementReleaseRequest(
                    group_uuid=rule.uuid, instance_uuid=self.uuid, task_id=name.task_id, attempt=name.attempt
                )
                self.env.router.call(
                    rule.uuid, GROUP_RELEASE, place, timeout_ms=self.left_ms(self.settings.claim_ms_max)
                )
            self._released.add(name)

    def at_hosts(self, hosts: Iterable[str], work: Callable[[str], bool]) -> set[str]:
        """Do ``work`` for several hosts at once, bounded; returns those for which it answered True."""
        names = list(hosts)
        if len(names) == 1:
            return {names[0]} if work(names[0]) else set()
        pool = Pool(self.settings.hosts_at_once_max)
        return {host for host, done in zip(names, pool.map(work, names), strict=True) if done}
