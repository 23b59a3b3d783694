"""Intake of actions at the instance's owner; a conductor that does not own it forwards once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zcompute.bus.errors import Busy, InvalidRequest
from zcompute.conductor.cell.instances import Unasked, new_task_id
from zcompute.conductor.cell.operators import check_operator
from zcompute.conductor.cell.resizing import Raising, amount_with
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.tasks.beginnings import BEGINNINGS, RESET_STATES, Beginning, begin
from zcompute.conductor.tasks.decision import Snapshot, apply
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES, TASKS
from zcompute.objects.actions import (
    ACTIONS,
    CONFIRM_RESIZE,
    EVACUATE,
    RESET_STATE,
    RESIZE,
    REVERT_RESIZE,
    SHELVE_OFFLOAD,
    Action,
    check_state,
)
from zcompute.objects.errors import InstanceNotFound, OperationConflict
from zcompute.objects.history import RESULT_SUCCESS, InstanceAction
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import InstanceActionRequest
from zcompute.objects.methods import INSTANCE_ACTION
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount

QUESTIONS_MAX = 3


def was_accepted(former: InstanceAction | None, action: Action, request: InstanceActionRequest) -> bool:
    """Whether this very operation was accepted before: its repeat gets the first outcome. Pure.

    Raises OperationConflict for the id of another.
    """
    if former is None:
        return False
    if (former.action, former.project_id) != (action.name, request.project_id):
        raise OperationConflict(
            f"operation {request.operation_id} was a {former.action} before", operation_id=request.operation_id
        )
    return True


def found(instance: Instance | None, request: InstanceActionRequest) -> Instance:
    """The instance, if it is there for this caller. Pure. Raises InstanceNotFound."""
    if instance is None or instance.vm_state == VM_DELETED or instance.project_id != request.project_id:
        raise InstanceNotFound("no such instance in this cell", uuid=request.uuid)
    return instance


@dataclass(frozen=True)
class _AskHost:
    """What a decision found missing: it is made again when it is known whether this host is forced down."""

    host: str


@dataclass(frozen=True)
class _AskRoot:
    """The same: when the root has agreed to charge the server so much."""

    instance: Instance
    amount: Amount


class Actions:
    """The handler of ``instance.action``."""

    def __init__(
        self,
        env: ConductorEnv,
        engine: TaskEngine,
        settings: CellSettings,
        task_settings: TaskSettings,
        forced_down: Callable[[Sequence[str]], set[str]],
        raising: Raising,
        owing_room: Callable[[int], None],
        make_task_id: Callable[[], str] = new_task_id,
    ) -> None:
        self._ledger = env.ledger
        self._forwarding = env.forwarding
        self._engine = engine
        self._settings = settings
        self._task_settings = task_settings
        self._forced_down = forced_down
        self._raising = raising
        self._owing_room = owing_room
        self._make_task_id = make_task_id

    def handlers(self) -> list[tuple[Method, Handler]]:
        """What changes an instance that is there."""
        return [(INSTANCE_ACTION, self.act)]

    def act(self, request: InstanceActionRequest, context: Any) -> Empty:
        """Acknowledged after the commit that makes the action sure to happen; repeated, it changes nothing.

        Raises InstanceNotFound, InstanceBusy (its state, its lock), OperationConflict, ActionInvalid, QuotaExceeded,
        InvalidRequest, Busy, NotOwner, and Unavailable where the root must be asked and does not answer.
        """
        check_operator(context)
        if self._forwarding.needed(request.uuid, context):
            reply: Empty = self._forwarding.call(request.uuid, INSTANCE_ACTION, request, context)
            return reply
        self._act(request, context, None)
        return Empty()

    def confirm(self, instance: Instance) -> None:
        """Confirm the move that this instance has, unless it has another or none by now. Raises as ``act``."""
        since_us = 0 if instance.move is None else instance.move.since_us
        request = InstanceActionRequest(
            uuid=instance.uuid,
            project_id=instance.project_id,
            operation_id=f"confirm-{instance.uuid}-{since_us}",
            action=CONFIRM_RESIZE.key,
            administrator=True,
        )
        self._act(
            request,
            Unasked(self._settings.commit_ms_max),
            lambda now: now.move is not None and now.move.since_us == since_us,
        )

    def offload(self, instance: Instance) -> None:
        """Offload this shelved instance, unless it has been unshelved since. Raises as ``act``."""
        request = InstanceActionRequest(
            uuid=instance.uuid,
            project_id=instance.project_id,
            operation_id=f"offload-{instance.uuid}-{instance.shelved_at_us}",
            action=SHELVE_OFFLOAD.key,
            administrator=True,
        )
        self._act(
            request,
            Unasked(self._settings.commit_ms_max),
            lambda now: now.shelved_at_us is not None and now.shelved_at_us == instance.shelved_at_us,
        )

    def _act(self, request: InstanceActionRequest, context: Any, still: Callable[[Instance], bool] | None) -> None:
        """``still``: whether it is to be done all the same, as the owner knows the instance."""
        action = ACTIONS.get(request.action)
        if action is None or action.key not in BEGINNINGS:
            raise InvalidRequest(
                f"expected an action of {', '.join(BEGINNINGS)}, found {request.action}", field="action"
            )
        if action is RESET_STATE and request.vm_state not in RESET_STATES:
            expected = ", ".join(RESET_STATES)
            raise InvalidRequest(f"expected a state of {expected}, found {request.vm_state!r}", field="vm_state")
        self._engine.check_room()
        if action.makes_image:
            self._owing_room(self._engine.tasks)
        task_id = self._make_task_id()
        operation = (INSTANCE_ACTIONS, (request.uuid, request.operation_id or task_id))
        request_id = getattr(context, "request_id", "")

        forced: dict[str, bool] = {}  # by the host that the instance was on when its state was asked for
        raised: list[Instance] = []  # what the root has agreed to, of the row as it was then

        def decide(change: Change) -> Snapshot | _AskHost | _AskRoot | None:
            if was_accepted(change.get(*operation), action, request):
                return None
            instance = found(change.get(INSTANCES, (request.uuid,)), request)
            if still is not None and not still(instance):
                return None
            check_state(action, instance, administrator=request.administrator)
            host = host_in_question(action, instance)
            if host and host not in forced:
                return _AskHost(host)
            change.request_id = request_id
            decision = begin(
                Beginning(
                    action, instance, request, task_id, request_id, change.now_us, self._task_settings,
                    forced.get(host, False),
                )
            )  # fmt: skip
            flavor = request.arguments.flavor if action is RESIZE else None
            amount = None if flavor is None else amount_with(instance, flavor)
            if amount is not None and [one.decided for one in raised[-1:]] != [instance.decided]:
                return _AskRoot(instance, amount)
            snapshot = apply(change, Snapshot(instance, None), decision)
            if decision.task is None:
                change.put(INSTANCE_ACTIONS, _over(action, instance, operation[1][1], request_id, change.now_us))
            return snapshot

        keys: Keys = [(INSTANCES, (request.uuid,)), (TASKS, (task_id,)), operation]
        try:
            for _ in range(QUESTIONS_MAX):
                ticket = self._ledger.submit(partition_of(request.uuid), keys, decide)
                ticket.on_done(self._committed)
                result = ticket.wait(max(1, min(self._settings.commit_ms_max, context.remaining_ms())))
                if isinstance(result, _AskHost):
                    forced[result.host] = result.host in self._forced_down([result.host])
                elif isinstance(result, _AskRoot):
                    raised.append(result.instance)
                    self._raising.ask(result.instance, result.amount, context)
                else:
                    return
            raise Busy(f"instance {request.uuid} keeps changing: try again", retry_after_ms=100)
        except Exception:
            if raised:
                self._raising.give_back(raised[-1], request_id)
            raise

    def _committed(self, ticket: Ticket) -> None:
        """Runs at the commit even when the caller's deadline is over by then: what was committed must be carried on."""
        snapshot = ticket.result if ticket.error is None else None
        if isinstance(snapshot, Snapshot) and snapshot.instance is not None and snapshot.task is not None:
            self._engine.begin(snapshot.instance, snapshot.task)


def host_in_question(action: Action, instance: Instance) -> str:
    """The host of which it matters whether it is forced down, "" where none does."""
    if action is REVERT_RESIZE:
        return instance.move.former_host if instance.move is not None else ""
    return instance.host or "" if action is EVACUATE else ""


def _over(action: Action, instance: Instance, operation_id: str, request_id: str, now_us: int) -> InstanceAction:
    """The history of an action that its first commit has ended."""
    return InstanceAction(
        instance_uuid=instance.uuid,
        operation_id=operation_id,
        action=action.name,
        request_id=request_id,
        user_id=instance.user_id,
        project_id=instance.project_id,
        started_at_us=now_us,
        finished_at_us=now_us,
        result=RESULT_SUCCESS,
    )
