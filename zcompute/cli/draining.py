"""Taking every server off a host: what is to be done next for each, by its row. Pure.

Nothing is remembered that the rows do not say: whoever begins again, in another process, goes on where it was. What is
asked for is named by the row that it was asked of, so the same is never asked for twice.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from zcompute.objects.actions import CONFIRM_RESIZE, EVACUATE, LIVE_MIGRATE, MIGRATE, SHELVE_OFFLOAD
from zcompute.objects.command import StepArguments
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED, VM_ERROR, VM_RESIZED, VM_SHELVED, VM_STOPPED, Instance

ATTEMPTS_MAX = 3  # of one server; each has its own alternates
OPERATION = "drain"

COLD, LIVE, EVACUATION = "cold", "live", "evacuation"
MOVES: dict[str, dict[str, str]] = {
    COLD: {VM_ACTIVE: MIGRATE.key, VM_STOPPED: MIGRATE.key, VM_SHELVED: SHELVE_OFFLOAD.key},
    LIVE: {VM_ACTIVE: LIVE_MIGRATE.key, VM_STOPPED: MIGRATE.key, VM_SHELVED: SHELVE_OFFLOAD.key},
    EVACUATION: {
        VM_ACTIVE: EVACUATE.key,
        VM_STOPPED: EVACUATE.key,
        VM_ERROR: EVACUATE.key,
        VM_SHELVED: SHELVE_OFFLOAD.key,
    },
}
"""By the way of moving and the server's vm_state: what is asked for. Any other state is left. What is shelved has its
disk in an image: it needs no other host."""


@dataclass(frozen=True)
class Ask:
    """An action to be asked for, under its operation id."""

    action: str
    operation_id: str
    arguments: StepArguments = field(default_factory=StepArguments)

    @property
    def moves(self) -> bool:
        """Whether it takes a place among those under way; a confirmation ends one."""
        return self.action != CONFIRM_RESIZE.key


@dataclass(frozen=True)
class Wait:
    """A task is under way."""


@dataclass(frozen=True)
class Leave:
    """Nothing is done about it."""

    reason: str


Next = Ask | Wait | Leave | None


def next_step(instance: Instance, host: str, way: str) -> Next:
    """None: nothing of the server is on the host (any more)."""
    move = instance.move
    has_copy = move is not None and move.former_host == host
    if instance.vm_state == VM_DELETED or (instance.host != host and not has_copy):
        return None
    if instance.task_id is not None or instance.task_state is not None:
        return Wait()
    if move is not None:
        if instance.vm_state == VM_RESIZED and move.operation_id.startswith(f"{OPERATION}-"):
            return _ask(instance, CONFIRM_RESIZE.key)
        return Leave("a move of it waits to be confirmed or reverted")
    action = MOVES[way].get(instance.vm_state)
    if action is None:
        return Leave(f"a server in vm_state {instance.vm_state} is not moved")
    return _ask(instance, action)


def _ask(instance: Instance, action: str) -> Ask:
    arguments = StepArguments(block=True) if action == LIVE_MIGRATE.key else StepArguments()
    return Ask(action, f"{OPERATION}-{action}-{instance.decided}", arguments)


@dataclass
class Look:
    """What one look at the rows comes to. ``on_host`` servers are on the host, or have their copy there; ``left`` says
    why nothing is done about some."""

    asks: list[tuple[Instance, Ask]] = field(default_factory=list)
    under_way: int = 0
    on_host: int = 0
    left: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing is, or is to be, done any more."""
        return not self.under_way and not self.asks


class Draining:
    """``parallel`` moves at once. Attempts are counted here, all else is in the rows."""

    def __init__(self, host: str, way: str, parallel: int) -> None:
        self._host = host
        self._way = way
        self._parallel = parallel
        self._attempts: Counter[str] = Counter()
        self._refused: dict[str, tuple[str, str]] = {}  # by server: what was asked for, and the reason
        self.asked: dict[str, str] = {}  # by server: the operation id of its last move

    def look(self, instances: Iterable[Instance]) -> Look:
        """Decide. The oldest servers first, so that each look asks in the same order."""
        look = Look()
        wanted: list[tuple[Instance, Ask]] = []
        for instance in sorted(instances, key=lambda each: (each.created_at_us, each.uuid)):
            step = next_step(instance, self._host, self._way)
            if step is None:
                continue
            look.on_host += 1
            look.names[instance.uuid] = instance.name
            if isinstance(step, Wait):
                look.under_way += 1
            elif isinstance(step, Leave):
                look.left[instance.uuid] = step.reason
            elif not step.moves:
                look.asks.append((instance, step))
            elif (reason := self._why_not(instance, step)) is not None:
                look.left[instance.uuid] = reason
            else:
                wanted.append((instance, step))
        room = max(0, self._parallel - look.under_way - len(look.asks))
        for instance, step in wanted[:room]:
            if self.asked.get(instance.uuid) != step.operation_id:
                self._attempts[instance.uuid] += 1
                self.asked[instance.uuid] = step.operation_id
            look.asks.append((instance, step))
        return look

    def refused(self, instance: Instance, step: Ask, reason: str) -> None:
        """The server's cell has said no; should its row change, something else is asked for."""
        self._refused[instance.uuid] = (step.operation_id, reason)

    def _why_not(self, instance: Instance, step: Ask) -> str | None:
        operation_id, reason = self._refused.get(instance.uuid, ("", ""))
        if operation_id == step.operation_id:
            return reason
        tried = self._attempts[instance.uuid] >= ATTEMPTS_MAX and self.asked.get(instance.uuid) != step.operation_id
        return reason if tried else None
