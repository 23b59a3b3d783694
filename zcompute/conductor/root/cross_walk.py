"""The decisions of a server's move to another cell, at the root: pure.

hold -> prepare -> send -> switch -> activate -> leave. Each step but the switch is a word to one side, repeated until
that side says that it is there. The switch is one commit of the mapping: before it a move that cannot go on is taken
back (reopen at the source first, so that the server works again, then discard at the target), after it there is only
forward.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from zcompute.conductor.change import Change
from zcompute.db.tables import MAPPINGS
from zcompute.objects.build_request import BuildRequest, InstanceMapping
from zcompute.objects.cross_move import CROSS_ENDED, CROSS_RUNNING, CrossMove, CrossMoveBody
from zcompute.objects.errors import CellRefused, InstanceBusy, InstanceNotFound
from zcompute.objects.messages.crossing import (
    CROSS_ABSENT,
    CROSS_DISCARDED,
    CROSS_GONE,
    CROSS_HELD,
    CROSS_KEPT,
    CROSS_PREPARED,
    CROSS_RUNS,
    CROSS_SENT,
    SOURCE_WORDS,
    WORD_ACTIVATE,
    WORD_DISCARD,
    WORD_HOLD,
    WORD_LEAVE,
    WORD_PREPARE,
    WORD_REOPEN,
    WORD_SEND,
    CrossMoveRequest,
    CrossOrder,
    CrossReply,
)

STEP_SWITCH = "switch"
FORWARD = (WORD_HOLD, WORD_PREPARE, WORD_SEND, STEP_SWITCH, WORD_ACTIVATE, WORD_LEAVE)
BACK = (WORD_REOPEN, WORD_DISCARD)
BEFORE_SWITCH = frozenset(FORWARD[: FORWARD.index(STEP_SWITCH) + 1])
"""Steps from which there is a way back."""
REASON_CHARS_MAX = 255

_REACHED = {
    WORD_HOLD: frozenset({CROSS_HELD}),
    WORD_PREPARE: frozenset({CROSS_PREPARED}),
    WORD_SEND: frozenset({CROSS_SENT}),
    WORD_ACTIVATE: frozenset({CROSS_RUNS, CROSS_DISCARDED}),  # the latter: it was deleted there meanwhile
    WORD_LEAVE: frozenset({CROSS_GONE}),
    WORD_REOPEN: frozenset({CROSS_KEPT}),
    WORD_DISCARD: frozenset({CROSS_DISCARDED}),
}
_GIVEN_UP = frozenset({CROSS_KEPT, CROSS_GONE, CROSS_DISCARDED, CROSS_ABSENT})


@dataclass(frozen=True)
class Begun:
    """A move that is under way; ``fresh``: by this very request."""

    move: CrossMove
    fresh: bool


def begin(
    request: CrossMoveRequest,
    mapping: InstanceMapping | None,
    build_request: BuildRequest | None,
    former: CrossMove | None,
    now_us: int,
    deadline_s: int,
    request_id: str,
) -> Begun:
    """Take a move in, or find the operation's own. Raises InstanceNotFound, InstanceBusy, CellRefused."""
    if former is not None and former.operation_id == request.operation_id:
        return Begun(former, fresh=False)
    if mapping is None:
        raise InstanceNotFound(f"Instance {request.uuid} could not be found.", uuid=request.uuid)
    if build_request is not None or mapping.cell is None:
        raise _busy(request.uuid, "no cell has built it yet")
    if former is not None and former.state == CROSS_RUNNING:
        raise _busy(request.uuid, f"it is being moved to cell {former.target_cell} already")
    if mapping.cell == request.target_cell:
        raise CellRefused(f"instance {request.uuid} is in cell {mapping.cell}", cell=mapping.cell)
    return Begun(
        CrossMove(
            uuid=request.uuid,
            project_id=mapping.project_id,
            operation_id=request.operation_id,
            source_cell=mapping.cell,
            target_cell=request.target_cell,
            generation=mapping.generation + 1,
            step=FORWARD[0],
            deadline_at_us=now_us + deadline_s * 1_000_000,
            created_at_us=now_us,
            updated_at_us=now_us,
            body=CrossMoveBody(step_began_at_us=now_us, request_id=request_id),
        ),
        fresh=True,
    )


def asked_again(move: CrossMove) -> CrossMove:
    """The move as its target is asked once more right before the switch: whether its destination still awaits it."""
    return replace(move, step=WORD_PREPARE)


def why_not_switched(move: CrossMove, reply: CrossReply) -> str:
    """What in that answer keeps the mapping where it is; "" for nothing."""
    return "" if reply.state == CROSS_PREPARED else reply.reason or f"cell {move.target_cell} has given it up"


def order_of(move: CrossMove, now_us: int) -> CrossOrder:
    """The word of the present step."""
    body = move.body
    left_s = max(60, (move.deadline_at_us - now_us) // 1_000_000)
    order = CrossOrder(
        uuid=move.uuid,
        project_id=move.project_id,
        operation_id=move.operation_id,
        generation=move.generation,
        word=move.step,
        deadline_s=left_s,
        reason=body.result,
    )
    if move.step == WORD_PREPARE:
        order.instance = body.instance
        order.host = "" if body.instance is None else body.instance.host or ""
    elif move.step == WORD_SEND:
        order.host, order.answers = body.host, dict(body.answers)
    return order


def cell_of(move: CrossMove) -> str:
    """Whom the present step's word is for."""
    return move.source_cell if move.step in SOURCE_WORDS else move.target_cell


def heard(move: CrossMove, reply: CrossReply, now_us: int) -> CrossMove | None:
    """What follows from a side's answer; None: it is still at it, ask again."""
    step = move.step
    if reply.state in _REACHED[step]:
        if step == WORD_HOLD and not _is_of(move, reply):  # a cell has a say of its own servers only
            return back(move, f"cell {move.source_cell} speaks of another server", now_us)
        return _on(move, reply, now_us)
    if step in BEFORE_SWITCH and reply.state in _GIVEN_UP:
        return back(move, reply.reason or f"cell {cell_of(move)} has given it up", now_us)
    if step == WORD_PREPARE and not move.body.arrived_at_us:
        return replace(move, updated_at_us=now_us, body=replace(move.body, arrived_at_us=now_us))
    return None


def _is_of(move: CrossMove, reply: CrossReply) -> bool:
    held = reply.instance
    return held is not None and (held.uuid, held.project_id) == (move.uuid, move.project_id)


def _on(move: CrossMove, reply: CrossReply, now_us: int) -> CrossMove:
    body = move.body
    if move.step == WORD_HOLD:
        body = replace(body, instance=reply.instance)
    elif move.step == WORD_PREPARE:
        arrived_at_us = body.arrived_at_us or now_us
        body = replace(body, host=reply.host, answers=dict(reply.answers), arrived_at_us=arrived_at_us)
    elif move.step == WORD_ACTIVATE:
        body = replace(body, result=reply.reason[:REASON_CHARS_MAX])  # it is there, though in ERROR
    steps = FORWARD if move.step in FORWARD else BACK
    at = steps.index(move.step) + 1
    return to_step(move, steps[at] if at < len(steps) else "", now_us, body)


def to_step(move: CrossMove, step: str, now_us: int, body: CrossMoveBody | None = None) -> CrossMove:
    """The move at its next step; "" is its end."""
    body = replace(body or move.body, step_began_at_us=now_us)
    if not step:
        body.instance = None  # no copy of a server is kept for ever
        return replace(move, state=CROSS_ENDED, ended_at_us=now_us, updated_at_us=now_us, body=body)
    return replace(move, step=step, updated_at_us=now_us, body=body)


def back(move: CrossMove, reason: str, now_us: int) -> CrossMove:
    """Give a move up that has not been switched."""
    return to_step(move, BACK[0], now_us, replace(move.body, result=reason[:REASON_CHARS_MAX]))


def switch(change: Change, move: CrossMove, why_not: str) -> CrossMove:
    """The mapping says the target from this commit on; or the move is given up (``why_not``, or since the mapping is
    not what it was)."""
    mapping = change.get(MAPPINGS, (move.uuid,))
    before = (move.source_cell, move.generation - 1)
    if not why_not and (mapping is None or (mapping.cell, mapping.generation) != before):
        place = "nowhere" if mapping is None else f"{mapping.cell}/{mapping.generation}"
        why_not = f"the server is mapped to {place}, expected {before[0]}/{before[1]}"
    if why_not or mapping is None:
        return back(move, why_not, change.now_us)
    change.put(MAPPINGS, replace(mapping, cell=move.target_cell, generation=move.generation, tried_cells=[]))
    return to_step(move, WORD_ACTIVATE, change.now_us)


def same_step(now: CrossMove | None, expected: CrossMove) -> bool:
    """Whether the row is where its runner knows it to be."""
    return now is not None and (now.operation_id, now.step, now.state) == (
        expected.operation_id,
        expected.step,
        CROSS_RUNNING,
    )


def _busy(uuid: str, why: str) -> InstanceBusy:
    return InstanceBusy(f"Cannot migrate instance {uuid} to another cell: {why}", uuid=uuid, vm_state="", task_state="")
