"""Guards switched off, each in turn: what the checker must find within few seeds, or it proves nothing.

The fence and the watermark are statements of the batch, which the simulated database carries out; the others are the
agents' and conductors' own code.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from tests.simulation.cell.world import World
from zcompute.db.batch import Batch
from zcompute.db.errors import AlreadyApplied, Fenced


def _no_fence(world: World) -> None:
    """Batches of dead lanes are let in."""
    rows = world.server.rows
    apply = rows.apply

    def unfenced(batch: Batch) -> None:
        lane = rows.lanes[batch.lane_id]
        rows.lanes[batch.lane_id] = msgspec.structs.replace(lane, alive=True)
        try:
            apply(batch)
        finally:
            rows.lanes[batch.lane_id] = lane

    rows.apply = unfenced


def _no_watermark(world: World) -> None:
    """A batch that comes again is carried out again."""
    rows = world.server.rows
    apply = rows.apply

    def repeated(batch: Batch) -> None:
        try:
            apply(batch)
        except (AlreadyApplied, Fenced):
            rows.applied[batch.lane_id] = (batch.number - 1, 0)
            apply(batch)

    rows.apply = repeated


def _no_sequence(world: World) -> None:
    """An older observation counts like a newer one."""
    from zcompute.conductor.cell import reports

    judge = reports.judge_observation

    def gullible(instance: Any, observation: Any, agent_epoch: int, seq: int, named: Any) -> Any:
        if instance is not None:
            instance = msgspec.structs.replace(instance, agent_epoch=0, observed_seq=0)
        return judge(instance, observation, agent_epoch, seq, named)

    reports.judge_observation = gullible


def _no_durable_outbox(world: World) -> None:
    """What the agent owes lives in its memory only."""
    from zcompute.compute.outbox import Outbox

    begin = Outbox.__init__

    def forgetful(self: Any, *args: Any) -> None:
        begin(self, *args)
        self.journal.write = lambda _: True

    Outbox.__init__ = forgetful


def _no_command_generation(world: World) -> None:
    """An agent takes orders of a former generation for new ones."""
    from zcompute.compute.generations import Finding, Generations

    find = Generations.find

    def obedient(self: Any, order: Any) -> Any:
        finding, step = find(self, order)
        return (Finding.NEW, None) if finding is Finding.STALE else (finding, step)

    Generations.find = obedient
    Generations.is_current = lambda self, order: True


def _no_owner_epoch(world: World) -> None:
    """An agent obeys an owner of whom it knows that others have followed him, and orders of former generations.

    The two stand in for one another: whoever takes over raises both, so one of them alone keeps a dead owner out.
    """
    from zcompute.compute.fences import Fences

    _no_command_generation(world)
    Fences.allows = lambda self, partition, owner_epoch: True


def _no_quarantine(world: World) -> None:
    """A host that was forced down works again whatever it has."""
    from zcompute.conductor.cell.quarantine import Quarantine

    Quarantine.check = lambda self, host: None


def _no_fence_check(world: World) -> None:
    """An evacuation does not look again whether its source is forced down, and nobody looks for it either."""
    from zcompute.conductor.cell import quarantine
    from zcompute.conductor.tasks.ghosts import has_left
    from zcompute.conductor.tasks.moves.steps import CheckFence, _journal, walk

    CheckFence.run = lambda self, run: _journal(run, walk.advance)
    quarantine.has_left = lambda instance, task, host: has_left(instance, None, host)


def _no_group(world: World) -> None:
    """Every place in a server group is granted, and no host is left out for one."""
    from zcompute.conductor.cell import placement_service
    from zcompute.conductor.tasks import placing

    placement_service.refusal = lambda placements, request: ""
    placing.leaning_of = lambda rule, members: placing.Leaning()


SABOTAGES: dict[str, Callable[[World], None]] = {
    "fence": _no_fence,
    "watermark": _no_watermark,
    "sequence": _no_sequence,
    "outbox": _no_durable_outbox,
    "generation": _no_command_generation,
    "epoch": _no_owner_epoch,
    "quarantine": _no_quarantine,
    "fence_check": _no_fence_check,
    "group": _no_group,
}
