"""What operators, and the API for administrators, see of a cell's tasks, and their word on one: at any conductor, and
at the instance's owner."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zcompute.bus.errors import Busy, InvalidRequest
from zcompute.conductor.cell.operators import OPERATOR, check_operator
from zcompute.conductor.cell.reads import unavailable_without_database
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.tasks.aborts import Word, abort, complete, retry
from zcompute.conductor.tasks.decision import Decision, Snapshot, apply
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.history import action_key
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES, TASKS
from zcompute.db.view import View
from zcompute.objects.errors import OperationConflict, TaskNotFound
from zcompute.objects.history import RESULT_SUCCESS, InstanceAction
from zcompute.objects.instance import Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.tasks import TaskListReply, TaskListRequest, TaskOrder, TaskReply
from zcompute.objects.methods import TASK_ABORT, TASK_COMPLETE, TASK_LIST, TASK_RETRY
from zcompute.objects.partition import partition_of
from zcompute.objects.task import TASK_PARKED

log = logging.getLogger(__name__)

READS_MAX = 5
ACTION_RETRY = "task_retry"
ACTION_ABORT = "task_abort"
ACTION_COMPLETE = "task_complete"


@dataclass(frozen=True)
class _Unread:
    """What a decision found missing: it is made again with these rows read."""

    keys: Keys


class Tasks:
    """The handlers of interface ``task``."""

    def __init__(
        self, env: ConductorEnv, engine: TaskEngine, settings: CellSettings, task_settings: TaskSettings
    ) -> None:
        self._env = env
        self._engine = engine
        self._settings = settings
        self._task_settings = task_settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators."""
        return [
            (TASK_LIST, unavailable_without_database(self.page)),
            (TASK_RETRY, self.retry),
            (TASK_ABORT, self.abort),
            (TASK_COMPLETE, self.complete),
        ]

    def page(self, request: TaskListRequest, context: Any) -> TaskListReply:
        """A page, read from a replica that is current. Raises InvalidRequest, Forbidden, Unavailable."""
        check_operator(context)
        if not 1 <= request.limit <= self._settings.list_rows_max:
            raise InvalidRequest(f"expected 1 to {self._settings.list_rows_max} rows", field="limit")

        def read(view: View) -> TaskListReply:
            after = (request.after,) if request.after else None
            rows = view.scan(TASKS, where=_where(request, "instance_uuid"), limit=request.limit, after=after)
            if not rows and request.found is not None:
                rows = view.scan(TASKS, where=_where(request, "id"), limit=1, after=after)
            parked = [(row.instance_uuid,) for row in rows if row.state == TASK_PARKED]
            instances = view.fetch(INSTANCES, parked) if parked else {}
            return TaskListReply(
                tasks=rows,
                next=rows[-1].id if len(rows) == request.limit else None,
                faults={uuid: row.fault.message for (uuid,), row in instances.items() if row.fault is not None},
            )

        return self._env.reads.read(context, read)

    def retry(self, order: TaskOrder, context: Any) -> TaskReply:
        """Begin a parked task again. Raises TaskNotFound, TaskRefused, OperationConflict, Busy, NotOwner, Forbidden."""
        return self._at_owner(order, context, TASK_RETRY, ACTION_RETRY, retry)

    def abort(self, order: TaskOrder, context: Any) -> TaskReply:
        """End a task before it is done. Raises as retry does."""
        return self._at_owner(order, context, TASK_ABORT, ACTION_ABORT, abort)

    def complete(self, order: TaskOrder, context: Any) -> TaskReply:
        """Have a live migration come to its end. Raises as retry does."""
        return self._at_owner(order, context, TASK_COMPLETE, ACTION_COMPLETE, complete)

    def _at_owner(
        self, order: TaskOrder, context: Any, method: Method, action: str, decide: Callable[[Word], Decision]
    ) -> TaskReply:
        check_operator(context)
        if self._env.forwarding.needed(order.instance_uuid, context):
            reply: TaskReply = self._env.forwarding.call(order.instance_uuid, method, order, context)
            return reply
        known: Keys = []
        for _ in range(READS_MAX):
            found = self._commit(order, context, action, decide, known)
            if isinstance(found, TaskReply):
                if found.changed:
                    log.warning(
                        "audit: %s uuid=%s task=%s by=%s", action, order.instance_uuid, order.task_id,
                        context.peer.service_id,
                    )  # fmt: skip
                return found
            known = found.keys
        raise Busy(f"task {order.task_id} keeps changing: try again", retry_after_ms=100)

    def _commit(
        self, order: TaskOrder, context: Any, action: str, decide: Callable[[Word], Decision], known: Keys
    ) -> "TaskReply | _Unread":
        uuid = order.instance_uuid
        operation = (INSTANCE_ACTIONS, (uuid, order.operation_id))
        request_id = getattr(context, "request_id", "")

        def on_rows(change: Change) -> "Snapshot | TaskReply | _Unread":
            former = change.get(*operation)
            instance, task = change.get(INSTANCES, (uuid,)), change.get(TASKS, (order.task_id,))
            if former is not None:
                if former.action != action:
                    raise OperationConflict(f"operation {order.operation_id} was a {former.action} before")
                return TaskReply(task=task, changed=False)
            if instance is None or task is None or instance.task_id != task.id:
                raise TaskNotFound(f"no task {order.task_id} is under way", task_id=order.task_id)
            if not change.loaded(*action_key(task)):
                return _Unread([action_key(task)])
            decision = decide(Word(instance, task, change.now_us, self._task_settings))
            snapshot = apply(change, Snapshot(instance, task), decision)
            change.put(INSTANCE_ACTIONS, _history(instance, order, action, request_id, change.now_us))
            return snapshot

        keys: Keys = [(INSTANCES, (uuid,)), (TASKS, (order.task_id,)), operation, *known]
        ticket = self._env.ledger.submit(partition_of(uuid), keys, on_rows)
        ticket.on_done(self._committed)
        result = ticket.wait(max(1, min(self._settings.commit_ms_max, context.remaining_ms())))
        if isinstance(result, Snapshot):
            return TaskReply(task=result.task, changed=True)
        found: TaskReply | _Unread = result
        return found

    def _committed(self, ticket: Ticket) -> None:
        """Runs at the commit even when the caller's deadline is over by then: what was committed must be carried on."""
        snapshot = ticket.result if ticket.error is None else None
        if not isinstance(snapshot, Snapshot) or snapshot.instance is None:
            return
        if snapshot.task is None:
            self._engine.applied(snapshot)
        else:
            self._engine.begin(snapshot.instance, snapshot.task, adopt=True)


def _where(request: TaskListRequest, found: str) -> dict[str, Any]:
    """Columns and their values. Pure."""
    named = {"state": request.state, "kind": request.kind, "instance_uuid": request.instance_uuid}
    where = {column: value for column, value in named.items() if value is not None}
    return where if request.found is None else {**where, found: request.found}


def _history(instance: Instance, order: TaskOrder, action: str, request_id: str, now_us: int) -> InstanceAction:
    """The operator's own line in the instance's history: the task has its own."""
    return InstanceAction(
        instance_uuid=instance.uuid,
        operation_id=order.operation_id,
        action=action,
        request_id=request_id,
        user_id=OPERATOR,
        project_id=instance.project_id,
        started_at_us=now_us,
        finished_at_us=now_us,
        result=RESULT_SUCCESS,
    )
