"""Moves of servers to other cells, carried on by the root's owner of their project: the thin part (cross_walk decides).

A runner a move repeats its step's word to the cell that it is for until that says that it is there, then journals the
next step. Nothing is kept in memory that the row does not have, so the next owner carries on.
"""

import logging
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import msgspec
from gevent.event import Event

from zcompute.bus import Link
from zcompute.bus.context import request_id
from zcompute.bus.errors import (
    BusError,
    Busy,
    Forbidden,
    InvalidRequest,
    NotOwner,
    Unavailable,
    UnknownMethod,
    UnsupportedVersion,
)
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import WrongPartition
from zcompute.conductor.root.cell_states import living
from zcompute.conductor.root.cells import CellsFeed
from zcompute.conductor.root.cross_walk import (
    BEFORE_SWITCH,
    STEP_SWITCH,
    Begun,
    back,
    begin,
    cell_of,
    heard,
    order_of,
    same_step,
    switch,
)
from zcompute.conductor.root.intake import instance_not_found
from zcompute.conductor.root.settings import CrossMoveSettings
from zcompute.conductor.root.topology import require_operator
from zcompute.db.errors import StoreError
from zcompute.db.tables import BUILD_REQUESTS, CELLS, CROSS_MOVES, MAPPINGS
from zcompute.failpoints import failpoint
from zcompute.log import REPEATED
from zcompute.measure import Measure
from zcompute.objects.cell import CELL_ENABLED
from zcompute.objects.cross_move import CROSS_RUNNING, KIND_CROSS_MOVE, CrossMove
from zcompute.objects.errors import CellRefused, InstanceNotFound, ObjectError, ServiceError, TaskNotFound, TaskRefused
from zcompute.objects.interface import Method
from zcompute.objects.messages.crossing import (
    CROSS_DISCARDED,
    CROSS_GONE,
    CROSS_KEPT,
    WORD_LEAVE,
    WORD_SEND,
    CrossMoveGetRequest,
    CrossMoveReply,
    CrossMoveRequest,
    CrossReply,
)
from zcompute.objects.messages.tasks import TaskListReply, TaskListRequest, TaskOrder, TaskReply
from zcompute.objects.methods import INSTANCE_CROSS, MAPPING_MOVE, MAPPING_MOVED, TASK_ABORT, TASK_LIST, TASK_RETRY
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task, TaskBody

log = logging.getLogger(__name__)

ABORTED = "the move was aborted by an operator"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HANDLER_COMMIT_MS_MAX = 10_000
TASKS_PAGE_MAX = 1000
# What a cell says once and for all, of a word that has changed nothing there.
_REFUSALS = (ServiceError, UnknownMethod, UnsupportedVersion, InvalidRequest, Forbidden)

Make = Callable[[Change, CrossMove], CrossMove]


class _Run:
    """A move under way here. ``checked``: its row is as the ledger has it."""

    def __init__(self, move: CrossMove, *, checked: bool) -> None:
        self.move = move
        self.checked = checked
        self.failures = 0
        self.wake = Event()
        self.greenlet: gevent.Greenlet | None = None


class CrossMoves:
    """Handlers and runners; started and stopped with the root role."""

    def __init__(self, env: ConductorEnv, cells: CellsFeed, settings: CrossMoveSettings | None = None) -> None:
        self._env = env
        self._cells = cells
        self._settings = settings or CrossMoveSettings()
        self._runs: dict[str, _Run] = {}
        self._resumers: set[gevent.Greenlet] = set()
        self._stopped = False

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators."""
        return [(MAPPING_MOVE, self.move), (MAPPING_MOVED, self.moved), (TASK_LIST, self.tasks),
                (TASK_ABORT, self.abort), (TASK_RETRY, self.retry)]  # fmt: skip

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        oldest = min((run.move.created_at_us for run in self._runs.values()), default=0)
        age_s = max(0.0, (self._env.ledger.now_us() - oldest) / 1e6) if oldest else 0.0
        yield Measure("cross_moves", "Servers that are being moved to another cell", len(self._runs))
        yield Measure("cross_moves_max", "At so many no further move is begun", self._settings.moves_max)
        yield Measure("cross_moves_oldest_seconds", "Age of the oldest of these", age_s)

    # -- what operators ask -------------------------------------------------------------------------------------------

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
        if len(self._runs) >= self._settings.moves_max:
            raise Busy(
                f"moves_max ({self._settings.moves_max}) servers are being moved to other cells: try again later",
                retry_after_ms=self._settings.busy_retry_ms,
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
                self._settings.deadline_s,
                name,
            )
            if begun.fresh:
                change.put(CROSS_MOVES, begun.move)
            return begun

        keys: Keys = [(MAPPINGS, (uuid,)), (BUILD_REQUESTS, (uuid,)), (CROSS_MOVES, (uuid,))]
        ticket = self._env.ledger.submit(partition_of(request.project_id), keys, decide)
        ticket.on_done(self._begun)
        try:
            begun: Begun = ticket.wait(max(1, min(HANDLER_COMMIT_MS_MAX, int(context.remaining_ms()))))
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
            self._take_up(ticket.result.move, checked=True)

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

        timeout_ms = max(1, min(HANDLER_COMMIT_MS_MAX, int(context.remaining_ms())))
        aborted = self._env.ledger.commit(
            partition_of(found.project_id), [(CROSS_MOVES, key)], decide, timeout_ms=timeout_ms
        )
        log.warning("audit: cross move aborted uuid=%s by=%s", order.instance_uuid, context.peer.service_id)
        run = self._runs.get(order.instance_uuid)
        if run is not None:
            run.checked = False
            run.wake.set()
        return TaskReply(task=as_task(aborted), changed=True)

    def retry(self, order: TaskOrder, context: Any) -> TaskReply:
        """Raises TaskRefused: a move is tried again by itself for as long as it is there."""
        require_operator(context)
        found = self._env.store.fetch(CROSS_MOVES, [(order.instance_uuid,)]).get((order.instance_uuid,))
        if found is None or found.operation_id != order.task_id:
            raise _no_task(order)
        raise _refused(found, "moves to another cell are never parked: it is tried again by itself")

    # -- ownership ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End all runners where they are."""
        self._stopped = True
        for run in list(self._runs.values()):
            if run.greenlet is not None:
                run.greenlet.kill(block=False)
        gevent.killall(list(self._resumers), block=False)
        self._runs.clear()
        self._resumers.clear()

    def gained(self, partitions: list[int]) -> None:
        """Take up what these have under way."""
        resumer = gevent.spawn(self._resume, list(partitions))
        self._resumers.add(resumer)
        resumer.link(self._resumers.discard)

    def lost(self, partitions: Iterable[int]) -> None:
        """The new owners carry on."""
        gone = set(partitions)
        for uuid, run in list(self._runs.items()):
            if partition_of(run.move.project_id) in gone:
                del self._runs[uuid]
                if run.greenlet is not None:
                    run.greenlet.kill(block=False)

    def hurry(self, cell: str) -> None:
        """A link to the cell came up: ask it at once."""
        for run in self._runs.values():
            if run.failures and cell_of(run.move) == cell:
                run.wake.set()

    def _resume(self, partitions: list[int]) -> None:
        after: tuple[Any, ...] | None = None
        limit = self._settings.scan_rows_max
        while not self._stopped and (owned := [each for each in partitions if self._env.ledger.owns(each)]):
            try:
                page = self._env.store.scan(
                    CROSS_MOVES, partitions=owned, where={"state": CROSS_RUNNING}, limit=limit, after=after
                )
            except (StoreError, ObjectError) as error:
                log.info("moves between cells not read, trying again error=%s", error, extra=REPEATED)
                gevent.sleep(self._settings.scan_retry_ms / 1000)
                continue
            for move in page:
                self._take_up(move, checked=False)
            if len(page) < limit:
                return
            after = CROSS_MOVES.key_of(page[-1])

    def _take_up(self, move: CrossMove, *, checked: bool) -> None:
        if self._stopped or move.uuid in self._runs:
            return
        run = _Run(move, checked=checked)
        self._runs[move.uuid] = run
        run.greenlet = gevent.spawn(self._work, run)

    # -- a runner -----------------------------------------------------------------------------------------------------

    def _work(self, run: _Run) -> None:
        uuid = run.move.uuid
        request_id.set(run.move.body.request_id or "-")
        try:
            while run.move.state == CROSS_RUNNING:
                run.wake.clear()
                pause_s = self._tried(run)
                if pause_s:
                    run.wake.wait(pause_s)
            move = run.move
            log.info("cross move ended uuid=%s cell=%s result=%s", uuid, move.target_cell, move.body.result or "done")
        except NotOwner:
            log.info("cross move left to its new owner uuid=%s step=%s", uuid, run.move.step)
        finally:
            if self._runs.get(uuid) is run:
                del self._runs[uuid]

    def _tried(self, run: _Run) -> float:
        """One attempt at the present step; how long to wait before the next. Raises NotOwner."""
        try:
            pause_s = self._step(run)
            run.failures = 0
            return pause_s
        except NotOwner:
            raise
        except Exception as error:  # noqa: BLE001  # whatever went wrong: the row says where the move is, it goes on
            run.failures += 1
            run.checked = False
            level = logging.INFO if isinstance(error, BusError | ServiceError | StoreError) else logging.ERROR
            log.log(level, "cross move step repeated uuid=%s step=%s failures=%s error=%s: %s", run.move.uuid,
                    run.move.step, run.failures, type(error).__name__, error)  # fmt: skip
            settings = self._settings
            pause_ms = min(settings.retry_ms_max, settings.retry_ms_min << min(run.failures, 12))
            return pause_ms * random.uniform(0.5, 1.0) / 1000

    def _step(self, run: _Run) -> float:
        if not run.checked:
            self._journal(run, None)
            if run.move.state != CROSS_RUNNING:
                return 0.0
        move, now_us = run.move, self._env.ledger.now_us()
        if move.step in BEFORE_SWITCH and now_us >= move.deadline_at_us:
            reason = f"it did not come to its end before its deadline, in step {move.step}"
            self._journal(run, lambda change, now: back(now, reason, change.now_us))
            return 0.0
        if move.step == STEP_SWITCH:
            self._switch(run)
            return 0.0
        wait_us = move.body.arrived_at_us + int(self._settings.lists_s_max * 1e6) - now_us
        if move.step == WORD_SEND and wait_us > 0:
            return wait_us / 1e6
        reply = self._ask(move, now_us)
        if isinstance(reply, str):
            refusal = reply
            self._journal(run, lambda change, now: back(now, refusal, change.now_us))
            return 0.0
        following = heard(move, reply, now_us)
        if following is None:
            return self._settings.look_ms / 1000
        failpoint("crossmove.before_step")
        self._journal(run, lambda change, now: heard(now, reply, change.now_us) or now)
        failpoint("crossmove.after_step")
        return 0.0

    def _switch(self, run: _Run) -> None:
        target = run.move.target_cell
        why_not = f"cell {target} was deleted meanwhile" if self._cells.deleted(target) else ""
        failpoint("crossmove.before_switch")
        self._journal(run, lambda change, now: switch(change, now, why_not))
        failpoint("crossmove.after_switch")

    def _ask(self, move: CrossMove, now_us: int) -> CrossReply | str:
        """What the cell says to the present step's word; or why it refuses it, before anything was begun that only the
        way on would end. Raises the bus' errors where it says nothing."""
        cell = cell_of(move)
        if self._cells.deleted(cell):
            return _word_for_deleted(move)
        links = self._env.endpoint.links(role="conductor", cell=cell)
        if not links:
            raise Unavailable(f"no conductor of cell {cell} is linked")
        link: Link = random.choice(links)
        try:
            reply: CrossReply = link.call(INSTANCE_CROSS, order_of(move, now_us), timeout_ms=self._settings.call_ms_max)
        except NotOwner as error:  # of a partition of the cell: says nothing about this conductor
            raise Unavailable(f"cell {cell} found no owner: {error}") from error
        except _REFUSALS as error:
            if move.step not in BEFORE_SWITCH:
                raise
            return f"cell {cell}: {error}"
        return reply

    def _journal(self, run: _Run, make: Make | None) -> None:
        """Commit what follows, where the row is still at the step that the runner knows; learn the row as it is."""
        expected = run.move
        key = (expected.uuid,)

        def on_rows(change: Change) -> CrossMove | None:
            now = change.get(CROSS_MOVES, key)
            if now is None or make is None or not same_step(now, expected):
                return now
            following = make(change, now)
            if following is not now:
                change.put(CROSS_MOVES, following)
            return following

        now: CrossMove | None = self._env.ledger.commit(
            partition_of(expected.project_id),
            [(CROSS_MOVES, key), (MAPPINGS, key)],
            on_rows,
            timeout_ms=self._settings.commit_ms_max,
        )
        run.checked = True
        if now is None or now.operation_id != expected.operation_id:
            raise NotOwner("the move has ended", partition=partition_of(expected.project_id), map_version=0)
        if now.step != expected.step:
            log.info("cross move uuid=%s step=%s reason=%s", now.uuid, now.step, now.body.result or "-")
        run.move = now


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


def _word_for_deleted(move: CrossMove) -> CrossReply:
    """What a cell would say that is deleted: nothing is there any more."""
    if move.step == WORD_LEAVE:
        return CrossReply(state=CROSS_GONE)
    state = CROSS_KEPT if cell_of(move) == move.source_cell else CROSS_DISCARDED
    return CrossReply(state=state, reason=f"cell {cell_of(move)} was deleted")


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
