"""Intake of builds and deletes at the instance's owner; a conductor that does not own it forwards once."""

import logging
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from zcompute.bus.errors import Busy, InvalidRequest
from zcompute.conductor.cell.root_outbox import RootOutbox
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.tasks.act_walk import begin_act
from zcompute.conductor.tasks.build_walk import begin_build
from zcompute.conductor.tasks.decision import Decision, Snapshot, apply
from zcompute.conductor.tasks.delete_walk import accept_delete
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.history import action_key
from zcompute.conductor.tasks.settings import ACT_DEADLINES_S, TaskSettings
from zcompute.conductor.tasks.soft_delete_walk import Manner, is_due, manner_of_delete
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES, TASKS
from zcompute.objects.actions import DELETE, SOFT_DELETE, check_state
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.history import RESULT_SUCCESS, InstanceAction
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import BuildRequestMessage, InstanceActionRequest, InstanceDeleteRequest
from zcompute.objects.methods import INSTANCE_BUILD, INSTANCE_DELETE
from zcompute.objects.partition import partition_of
from zcompute.objects.task import TASK_DELETE, Task

log = logging.getLogger(__name__)

TASK_READS_MAX = 5


@dataclass(frozen=True)
class _Unread:
    """What a decision found missing: it is made again with these rows read."""

    keys: Keys


@dataclass(frozen=True)
class Unasked:
    """The context of what nobody called for: an owner's own sweep."""

    commit_ms: int
    request_id: str = ""

    def remaining_ms(self) -> int:
        """As a caller's deadline."""
        return self.commit_ms


def new_task_id() -> str:
    """A random id."""
    return str(uuids.uuid4())


def takes_build(instance: Instance | None, request: BuildRequest) -> bool:
    """Whether this request begins a build here; a row of the same or a later generation answers it already. Pure.

    Raises Busy while an older generation of the server is still in this cell.
    """
    if instance is None:
        return True
    if instance.mapping_generation >= request.generation:
        return False
    if instance.vm_state == VM_DELETED:
        return True
    raise Busy(f"instance {instance.uuid} of an earlier generation is still here: try again", retry_after_ms=200)


def was_accepted(former: InstanceAction | None, request: InstanceDeleteRequest) -> bool:
    """Whether the operation is a delete that was accepted before: its repeat gets the first outcome. Pure."""
    return former is not None and (former.action, former.project_id) == (TASK_DELETE, request.project_id)


def joined(instance: Instance, operation_id: str, context: Any, now_us: int) -> InstanceAction:
    """The history of a delete that found one under way: accepted, with nothing left to do. Pure."""
    return InstanceAction(
        instance_uuid=instance.uuid,
        operation_id=operation_id,
        action=TASK_DELETE,
        request_id=getattr(context, "request_id", ""),
        user_id=instance.user_id,
        project_id=instance.project_id,
        started_at_us=now_us,
        finished_at_us=now_us,
        result=RESULT_SUCCESS,
        message="a delete was under way already",
    )


class Instances:
    """The handlers that change instances."""

    def __init__(
        self,
        env: ConductorEnv,
        engine: TaskEngine,
        outbox: RootOutbox,
        settings: CellSettings,
        task_settings: TaskSettings,
        make_task_id: Callable[[], str] = new_task_id,
        reclaims: bool = False,
    ) -> None:
        self._env = env
        self._reclaims = reclaims
        self._ledger = env.ledger
        self._forwarding = env.forwarding
        self._engine = engine
        self._outbox = outbox
        self._settings = settings
        self._task_settings = task_settings
        self._make_task_id = make_task_id

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Interface ``instance`` but for its reads."""
        return [(INSTANCE_BUILD, self.build), (INSTANCE_DELETE, self.delete)]

    def build(self, message: BuildRequestMessage, context: Any) -> Empty:
        """From a root conductor: acknowledged after the commit of instance and task, however often it is asked for.

        Raises Busy, NotOwner, InvalidRequest when the request was meant for another cell.
        """
        request = message.build_request
        if self._forwarding.needed(request.uuid, context):
            return self._forward(request.uuid, INSTANCE_BUILD, message, context)
        if request.cell not in (None, self._env.cell):
            raise InvalidRequest(f"expected a request for cell {self._env.cell}, found {request.cell}", field="cell")
        self._engine.check_room()
        self._outbox.check_room(self._engine.tasks)
        task_id = self._make_task_id()
        deadline_s = self._task_settings.build_deadline_s

        def decide(change: Change) -> Snapshot | None:
            instance = change.get(INSTANCES, (request.uuid,))
            if not takes_build(instance, request):
                return None
            decision = begin_build(request, task_id, change.now_us, deadline_s)
            return apply(change, Snapshot(instance, None), decision)

        operation = (INSTANCE_ACTIONS, (request.uuid, request.operation_id or task_id))
        keys: Keys = [(INSTANCES, (request.uuid,)), (TASKS, (task_id,)), operation]
        ticket = self._ledger.submit(partition_of(request.uuid), keys, decide)
        ticket.on_done(self._committed)
        ticket.wait(self._timeout_ms(context))
        return Empty()

    def delete(self, request: InstanceDeleteRequest, context: Any) -> Empty:
        """Acknowledged after the commit that makes the delete sure to happen; repeated, it changes nothing.

        The bus and routers repeat a call whose answer is late or lost: what was accepted under this operation id stays
        accepted when the instance is gone by then, whoever owns it. Raises InstanceNotFound, InstanceLocked,
        InstanceBusy, Busy, NotOwner.
        """
        if self._forwarding.needed(request.uuid, context):
            return self._forward(request.uuid, INSTANCE_DELETE, request, context)
        return self._delete(request, context, None)

    def reclaim(self, instance: Instance, before_us: int) -> None:
        """Delete a server that was soft-deleted before this time, if it still is. Raises as ``delete``."""
        request = InstanceDeleteRequest(
            uuid=instance.uuid,
            project_id=instance.project_id,
            operation_id=f"reclaim-{instance.uuid}-{instance.soft_deleted_at_us}",
            administrator=True,
            force=True,
        )
        self._delete(request, Unasked(self._settings.commit_ms_max), before_us)

    def _delete(self, request: InstanceDeleteRequest, context: Any, due_before_us: int | None) -> Empty:
        self._engine.check_room()
        self._outbox.check_room(self._engine.tasks)
        fresh_id = self._make_task_id()
        known = self._engine.task_keys(request.uuid)
        for _ in range(TASK_READS_MAX):
            unread = self._delete_with(request, fresh_id, known, context, due_before_us)
            if unread is None:
                return Empty()
            known = unread.keys
        raise Busy(f"the task of instance {request.uuid} keeps changing: try again", retry_after_ms=100)

    def _delete_with(
        self, request: InstanceDeleteRequest, fresh_id: str, known: Keys, context: Any, due_before_us: int | None
    ) -> "_Unread | None":
        """Decide with the task's rows read under the ``known`` keys; returns those that must be read beside them."""
        uuid = request.uuid
        operation = (INSTANCE_ACTIONS, (uuid, request.operation_id or fresh_id))

        def decide(change: Change) -> Snapshot | _Unread | None:
            if was_accepted(change.get(*operation), request):
                return None
            instance = change.get(INSTANCES, (uuid,))
            if due_before_us is not None and not is_due(instance, due_before_us):
                return None
            task_id = None if instance is None else instance.task_id
            if task_id is not None and not change.loaded(TASKS, (task_id,)):
                return _Unread([(TASKS, (task_id,))])
            task = change.get(TASKS, (task_id,)) if task_id is not None else None
            if task is not None and not change.loaded(*action_key(task)):
                return _Unread([(TASKS, (task.id,)), action_key(task)])
            decision = self._decide(
                instance, task, request, fresh_id, getattr(context, "request_id", ""), change.now_us
            )
            snapshot = None if decision is None else apply(change, Snapshot(instance, task), decision)
            if instance is not None and change.get(*operation) is None:  # the task carries another operation out
                change.put(INSTANCE_ACTIONS, joined(instance, operation[1][1], context, change.now_us))
            return snapshot

        keys: Keys = [(INSTANCES, (uuid,)), (TASKS, (fresh_id,)), operation, *known]
        ticket = self._ledger.submit(partition_of(uuid), keys, decide)
        ticket.on_done(self._committed)
        result = ticket.wait(self._timeout_ms(context))
        return result if isinstance(result, _Unread) else None

    def _decide(
        self,
        instance: Instance | None,
        task: Task | None,
        request: InstanceDeleteRequest,
        task_id: str,
        request_id: str,
        now_us: int,
    ) -> Decision | None:
        """A delete, or a soft one. None: nothing is left to do."""
        mine = instance is not None and instance.project_id == request.project_id and instance.vm_state != VM_DELETED
        if mine and instance is not None:
            check_state(DELETE, instance, administrator=request.administrator)
            manner = Manner.AT_ONCE
            if self._reclaims and not request.force:
                manner = manner_of_delete(instance, task)
            if manner is Manner.DONE:
                return None
            if manner is Manner.SOFT:
                return begin_act(
                    SOFT_DELETE,
                    instance,
                    InstanceActionRequest(
                        uuid=request.uuid,
                        project_id=request.project_id,
                        operation_id=request.operation_id,
                        action=SOFT_DELETE.key,
                    ),
                    task_id=task_id,
                    request_id=request_id,
                    now_us=now_us,
                    deadline_s=ACT_DEADLINES_S[SOFT_DELETE.task_state],
                )
        return accept_delete(
            instance,
            task,
            project_id=request.project_id,
            operation_id=request.operation_id,
            request_id=request_id,
            task_id=task_id,
            now_us=now_us,
            deadline_s=self._task_settings.delete_deadline_s,
        )

    def _committed(self, ticket: Ticket) -> None:
        """Runs at the commit even when the caller's deadline is over by then: what was committed must be carried on."""
        snapshot = ticket.result if ticket.error is None else None
        if not isinstance(snapshot, Snapshot) or snapshot.instance is None:
            return
        if snapshot.outbox is not None:
            self._outbox.owed(snapshot.outbox)
        if snapshot.task is None:
            self._engine.applied(snapshot)
        else:
            self._engine.begin(snapshot.instance, snapshot.task)

    # -- forwarding -------------------------------------------------------------------------------------------------

    def _forward(self, uuid: str, method: Method, request: msgspec.Struct, context: Any) -> Empty:
        reply: Empty = self._forwarding.call(uuid, method, request, context)
        return reply

    def _timeout_ms(self, context: Any) -> int:
        remaining: int = context.remaining_ms()
        return max(1, min(self._settings.commit_ms_max, remaining))
