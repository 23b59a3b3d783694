"""What operators ask of moves of servers to other cells: to begin one, to look at it, to take it back."""

import logging
import re
from typing import Any

import msgspec

from zcompute.bus.errors import Busy, InvalidRequest
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import WrongPartition
from zcompute.conductor.root.cell_states import living
from zcompute.conductor.root.cross_moves import CrossMoves
from zcompute.conductor.root.cross_walk import BEFORE_SWITCH, Begun, back, begin
from zcompute.conductor.root.intake import instance_not_found
from zcompute.conductor.root.topology import require_operator
from zcompute.db.tables import BUILD_REQUESTS, CELLS, CROSS_MOVES, MAPPINGS
from zcompute.failpoints import failpoint
from zcompute.objects.cell import CELL_ENABLED
from zcompute.objects.cross_move import CROSS_RUNNING, KIND_CROSS_MOVE, CrossMove
from zcompute.objects.errors import CellRefused, InstanceNotFound, TaskNotFound, TaskRefused
from zcompute.objects.interface import Method
from zcompute.objects.messages.crossing import CrossMoveGetRequest, CrossMoveReply, CrossMoveRequest
from zcompute.objects.messages.tasks import TaskListReply, TaskListRequest, TaskOrder, TaskReply
from zcompute.objects.methods import MAPPING_MOVE, MAPPING_MOVED, TASK_ABORT, TASK_LIST, TASK_RETRY
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task, TaskBody

log = logging.getLogger(__name__)

ABORTED = "the move was aborted by an operator"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
COMMIT_MS_MAX = 10_000
TASKS_PAGE_MAX = 1000


class CrossMoveAsks:
    """The handlers; ``moves`` carries on what they begin."""

    def __init__(self, env: ConductorEnv, moves: CrossMoves) -> None:
        self._env = env
        self._moves = moves

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators."""
        return [
            (MAPPING_MOVE, self.move),
            (MAPPING_MOVED, self.moved),
            (TASK_LIST, self.tasks),
            (TASK_ABORT, self.abort),
            (TASK_RETRY, self.retry),
        ]

    def move(self, request: CrossMoveRequest, context: Any) -> CrossMoveReply:
        """Acknowledged after the commit that makes the move sure to be tried; repeated, it begins nothing more.

        Raises InstanceNotFound, InstanceBusy, CellNotFound, CellRefused, InvalidRequest, Busy, Forbidden, NotOwner.
        """
        require_operator(context)
        _check(request)
        if not request.project_id:
            mapping = self._env.store.fetch(MAPPINGS, [(request.uuid,)]).get((request.uuid,))
            if mapping is None:
                raise instance_not_found(request.uuid)
            request = msgspec.structs.replace(request, project_id=mapping.project_id)
        if self._env.forwarding.needed(request.project_id, context):
            forwarded: CrossMoveReply = self._env.forwarding.call(request.project_id, MAPPING_MOVE, request, context)
            return forwarded
        cell = living(self._env.store.fetch(CELLS, [(request.target_cell,)]).get((request.target_cell,)),
                      request.target_cell)  # fmt: skip
        if cell.state != CELL_ENABLED:
            raise CellRefused(f"cell {cell.name} takes no servers: it is {cell.state}", cell=cell.name)
        if len(self._moves) >= self._moves.settings.moves_max:
            raise Busy(
                f"moves_max ({self._moves.settings.moves_max}) servers are being moved to other cells: try again later",
                retry_after_ms=self._moves.settings.busy_retry_ms,
            )
        name = getattr(context, "request_id", "")
        uuid = request.uuid

        def decide(change: Change) -> Begun:
            begun = begin(
                request,
                change.get(MAPPINGS, (uuid,)),
                change.get(BUILD_REQUESTS, (uuid,)),
                change.get(CROSS_MOVES, (uuid,)),
                change.now_us,
                self._moves.settings.deadline_s,
                name,
            )
            if begun.fresh:
                change.put(CROSS_MOVES, begun.move)
            return begun

        keys: Keys = [(MAPPINGS, (uuid,)), (BUILD_REQUESTS, (uuid,)), (CROSS_MOVES, (uuid,))]
        ticket = self._env.ledger.submit(partition_of(request.project_id), keys, decide)
        ticket.on_done(self._begun)
        try:
            begun: Begun = ticket.wait(max(1, min(COMMIT_MS_MAX, int(context.remaining_ms()))))
        except WrongPartition as error:
            raise instance_not_found(uuid) from error
        if begun.fresh:
            log.warning("audit: cross move begun uuid=%s from=%s to=%s by=%s", uuid, begun.move.source_cell,
                        begun.move.target_cell, context.peer.service_id)  # fmt: skip
        return CrossMoveReply(move=begun.move)

    def _begun(self, ticket: Ticket) -> None:
        """Runs at the commit even when the caller's deadline is over by then."""
        if ticket.error is None and ticket.result.fresh:
            failpoint("crossmove.after_begin")
            self._moves.take_up(ticket.result.move)

    def moved(self, request: CrossMoveGetRequest, context: Any) -> CrossMoveReply:
        """Raises InstanceNotFound for a server without one, Forbidden."""
        require_operator(context)
        _check_uuid(request.uuid)
        found = self._env.store.fetch(CROSS_MOVES, [(request.uuid,)]).get((request.uuid,))
        if found is None:
            raise InstanceNotFound(f"no move of instance {request.uuid} to another cell is known", uuid=request.uuid)
        return CrossMoveReply(move=found)

    def tasks(self, request: TaskListRequest, context: Any) -> TaskListReply:
        """The moves that are under way, as tasks of the root. Raises InvalidRequest, Forbidden."""
        require_operator(context)
        if not 1 <= request.limit <= TASKS_PAGE_MAX:
            raise InvalidRequest(f"expected 1 to {TASKS_PAGE_MAX} rows", field="limit")
        if request.kind not in (None, KIND_CROSS_MOVE) or request.state not in (None, CROSS_RUNNING):
            return TaskListReply(tasks=[])
        where: dict[str, Any] = {"state": CROSS_RUNNING}
        if request.instance_uuid is not None:
            where["uuid"] = request.instance_uuid
        store, limit = self._env.store, request.limit
        after = (request.after,) if request.after else None
        if request.found is None:
            rows = store.scan(CROSS_MOVES, where=where, limit=limit, after=after)
        else:
            rows = store.scan(CROSS_MOVES, where={**where, "uuid": request.found}, limit=1, after=after)
            rows = rows or store.scan(CROSS_MOVES, where={**where, "operation_id": request.found}, limit=1, after=after)
        return TaskListReply(tasks=[as_task(row) for row in rows], next=rows[-1].uuid if len(rows) == limit else None)

    def abort(self, order: TaskOrder, context: Any) -> TaskReply:
        """Take a move back that has not been switched. Raises TaskNotFound, TaskRefused, Forbidden, NotOwner."""
        require_operator(context)
        found = self._env.store.fetch(CROSS_MOVES, [(order.instance_uuid,)]).get((order.instance_uuid,))
        if found is None or found.operation_id != order.task_id:
            raise _no_task(order)
        if self._env.forwarding.needed(found.project_id, context):
            forwarded: TaskReply = self._env.forwarding.call(found.project_id, TASK_ABORT, order, context)
            return forwarded
        key = (order.instance_uuid,)

        def decide(change: Change) -> CrossMove:
            now = change.get(CROSS_MOVES, key)
            if now is None or now.operation_id != order.task_id or now.state != CROSS_RUNNING:
                raise _no_task(order)
            if now.step not in BEFORE_SWITCH:
                raise _refused(now, f"it can be aborted before its switch; in step {now.step} it goes its way")
            aborted = back(now, ABORTED, change.now_us)
            change.put(CROSS_MOVES, aborted)
            return aborted

        timeout_ms = max(1, min(COMMIT_MS_MAX, int(context.remaining_ms())))
        aborted = self._env.ledger.commit(
            partition_of(found.project_id), [(CROSS_MOVES, key)], decide, timeout_ms=timeout_ms
        )
        log.warning("audit: cross move aborted uuid=%s by=%s", order.instance_uuid, context.peer.service_id)
        self._moves.look_again(order.instance_uuid)
        return TaskReply(task=as_task(aborted), changed=True)

    def retry(self, order: TaskOrder, context: Any) -> TaskReply:
        """Raises TaskRefused: a move is tried again by itself for as long as it is there."""
        require_operator(context)
        found = self._env.store.fetch(CROSS_MOVES, [(order.instance_uuid,)]).get((order.instance_uuid,))
        if found is None or found.operation_id != order.task_id:
            raise _no_task(order)
        raise _refused(found, "moves to another cell are never parked: it is tried again by itself")


def as_task(move: CrossMove) -> Task:
    """As operators see it in the list of tasks."""
    body = move.body
    return Task(
        id=move.operation_id,
        instance_uuid=move.uuid,
        kind=KIND_CROSS_MOVE,
        step=move.step,
        state=move.state,
        deadline_at_us=move.deadline_at_us,
        operation_id=move.operation_id,
        request_id=body.request_id,
        body=TaskBody(
            source=move.source_cell, destination=move.target_cell, result=body.result,
            step_began_at_us=body.step_began_at_us,
        ),
        created_at_us=move.created_at_us,
        updated_at_us=move.updated_at_us,
        revision=move.revision,
    )  # fmt: skip


def _no_task(order: TaskOrder) -> TaskNotFound:
    return TaskNotFound(f"no task {order.task_id} is under way", task_id=order.task_id)


def _refused(move: CrossMove, why: str) -> TaskRefused:
    return TaskRefused(
        f"the move of instance {move.uuid} to cell {move.target_cell}: {why}",
        task_id=move.operation_id,
        kind=KIND_CROSS_MOVE,
        step=move.step,
        state=move.state,
    )


def _check_uuid(uuid: str) -> None:
    if UUID.fullmatch(uuid) is None:
        raise InvalidRequest(f"expected a server's id, a uuid in lower case, found {uuid[:80]!r}", field="uuid")


def _check(request: CrossMoveRequest) -> None:
    _check_uuid(request.uuid)
    if UUID.fullmatch(request.operation_id) is None:
        raise InvalidRequest(
            f"expected an operation id, a uuid in lower case, found {request.operation_id[:80]!r}", field="operation_id"
        )
    if not request.target_cell.isascii() or not 1 <= len(request.target_cell) <= 64:
        raise InvalidRequest("expected a cell's name of 1 to 64 characters", field="target_cell")
