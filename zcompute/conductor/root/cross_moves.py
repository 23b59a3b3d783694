"""Moves of servers to other cells, carried on by the root's owner of their project: the thin part (cross_walk decides).

A runner a move repeats its step's word to the cell that it is for until that says that it is there, then journals the
next step. Nothing is kept in memory that the row does not have, so the next owner carries on.
"""

import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import Event

from zcompute.bus import Link
from zcompute.bus.context import request_id
from zcompute.bus.errors import (
    BusError,
    Forbidden,
    InvalidRequest,
    NotOwner,
    Unavailable,
    UnknownMethod,
    UnsupportedVersion,
)
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv
from zcompute.conductor.root.cells import CellsFeed
from zcompute.conductor.root.cross_walk import (
    BEFORE_SWITCH,
    STEP_SWITCH,
    asked_again,
    back,
    cell_of,
    heard,
    order_of,
    same_step,
    switch,
    why_not_switched,
)
from zcompute.conductor.root.settings import CrossMoveSettings
from zcompute.db.errors import StoreError
from zcompute.db.tables import CROSS_MOVES, MAPPINGS
from zcompute.failpoints import failpoint
from zcompute.log import REPEATED
from zcompute.measure import Measure
from zcompute.objects.cross_move import CROSS_RUNNING, CrossMove
from zcompute.objects.errors import ObjectError, ServiceError
from zcompute.objects.messages.crossing import (
    CROSS_DISCARDED,
    CROSS_GONE,
    CROSS_KEPT,
    CROSS_UNDER_WAY,
    WORD_LEAVE,
    WORD_SEND,
    CrossReply,
)
from zcompute.objects.methods import INSTANCE_CROSS
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

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
    """The runners; started and stopped with the root role."""

    def __init__(self, env: ConductorEnv, cells: CellsFeed, settings: CrossMoveSettings | None = None) -> None:
        self._env = env
        self._cells = cells
        self.settings = settings or CrossMoveSettings()
        self._runs: dict[str, _Run] = {}
        self._resumers: set[gevent.Greenlet] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._runs)

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        oldest = min((run.move.created_at_us for run in self._runs.values()), default=0)
        age_s = max(0.0, (self._env.ledger.now_us() - oldest) / 1e6) if oldest else 0.0
        yield Measure("cross_moves", "Servers that are being moved to another cell", len(self._runs))
        yield Measure("cross_moves_max", "At so many no further move is begun", self.settings.moves_max)
        yield Measure("cross_moves_oldest_seconds", "Age of the oldest of these", age_s)

    def take_up(self, move: CrossMove) -> None:
        """A move that was just committed here."""
        self._run(move, checked=True)

    def look_again(self, uuid: str) -> None:
        """Its row was changed by another than its runner."""
        run = self._runs.get(uuid)
        if run is not None:
            run.checked = False
            run.wake.set()

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
        limit = self.settings.scan_rows_max
        while not self._stopped and (owned := [each for each in partitions if self._env.ledger.owns(each)]):
            try:
                page = self._env.store.scan(
                    CROSS_MOVES, partitions=owned, where={"state": CROSS_RUNNING}, limit=limit, after=after
                )
            except (StoreError, ObjectError) as error:
                log.info("moves between cells not read, trying again error=%s", error, extra=REPEATED)
                gevent.sleep(self.settings.scan_retry_ms / 1000)
                continue
            for move in page:
                self._run(move, checked=False)
            if len(page) < limit:
                return
            after = CROSS_MOVES.key_of(page[-1])

    def _run(self, move: CrossMove, *, checked: bool) -> None:
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
            settings = self.settings
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
            return self._switch(run, now_us)
        wait_us = move.body.arrived_at_us + int(self.settings.lists_s_max * 1e6) - now_us
        if move.step == WORD_SEND and wait_us > 0:
            return wait_us / 1e6
        reply = self._ask(move, now_us)
        if isinstance(reply, str):
            refusal = reply
            self._journal(run, lambda change, now: back(now, refusal, change.now_us))
            return 0.0
        following = heard(move, reply, now_us)
        if following is None:
            return self.settings.look_ms / 1000
        failpoint("crossmove.before_step")
        self._journal(run, lambda change, now: heard(now, reply, change.now_us) or now)
        failpoint("crossmove.after_step")
        return 0.0

    def _switch(self, run: _Run, now_us: int) -> float:
        """Not to a target that does not answer now, or has lost its destination: from here the source works again."""
        reply = self._ask(asked_again(run.move), now_us)
        if isinstance(reply, CrossReply) and reply.state == CROSS_UNDER_WAY:
            return self.settings.look_ms / 1000
        why_not = reply if isinstance(reply, str) else why_not_switched(run.move, reply)
        failpoint("crossmove.before_switch")
        self._journal(run, lambda change, now: switch(change, now, why_not))
        failpoint("crossmove.after_switch")
        return 0.0

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
            reply: CrossReply = link.call(INSTANCE_CROSS, order_of(move, now_us), timeout_ms=self.settings.call_ms_max)
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
            timeout_ms=self.settings.commit_ms_max,
        )
        run.checked = True
        if now is None or now.operation_id != expected.operation_id:
            raise NotOwner("the move has ended", partition=partition_of(expected.project_id), map_version=0)
        if now.step != expected.step:
            log.info("cross move uuid=%s step=%s reason=%s", now.uuid, now.step, now.body.result or "-")
        run.move = now


def _word_for_deleted(move: CrossMove) -> CrossReply:
    """What a cell would say that is deleted: nothing is there any more."""
    if move.step == WORD_LEAVE:
        return CrossReply(state=CROSS_GONE)
    state = CROSS_KEPT if cell_of(move) == move.source_cell else CROSS_DISCARDED
    return CrossReply(state=state, reason=f"cell {cell_of(move)} was deleted")
