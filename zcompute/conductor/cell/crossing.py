"""The root's words on servers that go to another cell, at the server's owner."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zcompute.bus.errors import Forbidden
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.tasks.decision import Snapshot, apply
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.moves.crossing import check_order, decide, never_begun, standing_of
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES, TASKS
from zcompute.failpoints import failpoint
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.interface import Method
from zcompute.objects.messages.crossing import (
    CROSS_ABSENT,
    CROSS_PREPARED,
    WORD_DISCARD,
    WORD_HOLD,
    WORD_PREPARE,
    CrossOrder,
    CrossReply,
)
from zcompute.objects.methods import INSTANCE_CROSS
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)


class _Heard(msgspec.Struct, frozen=True):
    """What a word's commit has made: the answer, and the rows that it changed, if it did."""

    reply: CrossReply
    snapshot: Snapshot | None = None


class Crossing:
    """The handler of ``instance.cross``."""

    def __init__(
        self,
        env: ConductorEnv,
        engine: TaskEngine,
        settings: CellSettings,
        task_settings: TaskSettings,
        forced_down: Callable[[Sequence[str]], set[str]],
    ) -> None:
        self._env = env
        self._forced_down = forced_down
        self._engine = engine
        self._settings = settings
        self._task_settings = task_settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For the root's conductors."""
        return [(INSTANCE_CROSS, self.cross)]

    def cross(self, order: CrossOrder, context: Any) -> CrossReply:
        """Answered after the commit of what the word changes: how far this side of the move is then.

        Raises InstanceNotFound, InstanceBusy, InvalidRequest (nothing was begun), Forbidden, Busy, NotOwner.
        """
        if context.peer.cell not in (ROOT_CELL, self._env.cell):
            raise Forbidden(f"a conductor of cell {context.peer.cell} moves no servers here")
        check_order(order)
        if self._env.forwarding.needed(order.uuid, context):
            reply: CrossReply = self._env.forwarding.call(order.uuid, INSTANCE_CROSS, order, context)
            return reply
        if order.word in (WORD_HOLD, WORD_PREPARE):  # the others carry on what is under way
            self._engine.check_room()
        failpoint("crossing.before_commit")
        heard = self._commit(order, context)
        failpoint("crossing.after_commit")
        host = heard.reply.host
        if (order.word, heard.reply.state) == (WORD_PREPARE, CROSS_PREPARED) and host in self._forced_down([host]):
            lost = msgspec.structs.replace(order, word=WORD_DISCARD, reason=f"host {host} was forced down")
            heard = self._commit(lost, context)
        if heard.snapshot is not None:
            log.info("cross move word=%s uuid=%s state=%s", order.word, order.uuid, heard.reply.state)
        return heard.reply

    def _commit(self, order: CrossOrder, context: Any) -> _Heard:
        ticket = self._env.ledger.submit(
            partition_of(order.uuid), self._keys(order), lambda change: self._decide(change, order, context)
        )
        ticket.on_done(self._committed)
        heard: _Heard = ticket.wait(max(1, min(self._settings.commit_ms_max, context.remaining_ms())))
        return heard

    @staticmethod
    def _keys(order: CrossOrder) -> Keys:
        uuid, operation_id = order.uuid, order.operation_id
        return [(INSTANCES, (uuid,)), (TASKS, (operation_id,)), (INSTANCE_ACTIONS, (uuid, operation_id))]

    def _decide(self, change: Change, order: CrossOrder, context: Any) -> _Heard:
        operation = (INSTANCE_ACTIONS, (order.uuid, order.operation_id))
        instance, task = change.get(INSTANCES, (order.uuid,)), change.get(TASKS, (order.operation_id,))
        standing = standing_of(order, instance, task, change.get(*operation))
        change.request_id = getattr(context, "request_id", "")
        decision = decide(order, instance, task, standing.state, change.now_us, self._task_settings.ending_s_max)
        snapshot = None
        if decision is not None:
            if decision.task is not None and not decision.task.request_id:
                decision.task.request_id = change.request_id
            snapshot = apply(change, Snapshot(instance, task), decision)
        elif standing.state == CROSS_ABSENT:
            kept = never_begun(order, change.now_us, change.request_id)
            if kept is not None:
                change.put(INSTANCE_ACTIONS, kept)
        else:
            return _Heard(standing)
        if snapshot is not None:
            instance, task = snapshot.instance, snapshot.task
        return _Heard(standing_of(order, instance, task, change.get(*operation)), snapshot)

    def _committed(self, ticket: Ticket) -> None:
        """Runs at the commit even when the caller's deadline is over by then: what was committed must be carried on."""
        heard = ticket.result if ticket.error is None else None
        snapshot = heard.snapshot if isinstance(heard, _Heard) else None
        if snapshot is not None and snapshot.instance is not None and snapshot.task is not None:
            self._engine.begin(snapshot.instance, snapshot.task, adopt=True)
