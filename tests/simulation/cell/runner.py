"""Runs seeds, each in a forked process of its own: nothing of one life is left to another."""

import gc
import json
import os
import select
import time as real_time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from tests.simulation.cell.loop import BEGIN_S
from tests.simulation.cell.plan import Event, Scale, make_plan

clock_s = real_time.process_time


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    violations: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    digest: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    steps: int = 0
    commits: int = 0
    acks: int = 0
    commands: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return bool(self.violations or self.crashes)


def warm_up() -> None:
    """Live once in the parent: its children find everything imported, specialised and cached.

    The clock of this process is virtual from now on; whoever measures keeps the real functions.
    """
    gc.freeze()
    live(0, Scale(), make_plan(0, Scale()))
    gc.freeze()


_lived: list[object] = []


def live(seed: int, scale: Scale, events: list[Event], sabotage: str = "", verbose: bool = False) -> Outcome:
    """One life, in this very process, which is of no use afterwards."""
    import gevent

    from tests.simulation.cell import stage

    began_s = clock_s()
    stage.quieten(verbose)
    from tests.simulation.cell.world import World

    world = World(seed, scale)
    _lived.append(world)
    if verbose:
        stage.speak(world.network)
    try:
        if sabotage:
            from tests.simulation.cell.sabotage import SABOTAGES

            SABOTAGES[sabotage](world)
        living = gevent.spawn(world.live, events)
        living.get()
    finally:
        world.close()
    checker = world.checker
    return Outcome(
        seed, checker.violations, world.crashes, checker.digest, world.loop.now_s - BEGIN_S, clock_s() - began_s,
        world.loop.steps, checker.commits, checker.acks, checker.commands, dict(checker.seen),
    )  # fmt: skip


class Pool:
    """So many lives at once, each in a child; outcomes come as children end."""

    def __init__(self, jobs: int) -> None:
        self._jobs = max(1, jobs)
        self._poll = select.poll()
        self._children: dict[int, tuple[int, int, bytearray]] = {}  # by pipe: process, seed, what it has told

    def begin(self, seed: int, scale: Scale, events: list[Event], sabotage: str = "") -> Iterator[Outcome]:
        """Begin one, once there is room; what has ended meanwhile is handed out."""
        while len(self._children) >= self._jobs:
            yield from self._wait()
        pipe_in, pipe_out = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(pipe_in)
            _child(pipe_out, seed, scale, events, sabotage)
        os.close(pipe_out)
        self._children[pipe_in] = (child, seed, bytearray())
        self._poll.register(pipe_in, select.POLLIN | select.POLLHUP)

    def rest(self) -> Iterator[Outcome]:
        """All that are still under way."""
        while self._children:
            yield from self._wait()

    def _wait(self) -> Iterator[Outcome]:
        for pipe, _ in self._poll.poll():
            child, seed, told = self._children[pipe]
            data = os.read(pipe, 1 << 16)
            if data:
                told += data
                continue
            self._poll.unregister(pipe)
            os.close(pipe)
            del self._children[pipe]
            _, status = os.waitpid(child, 0)
            yield Outcome(**json.loads(bytes(told))) if told else Outcome(seed, [f"died with status {status}"])


def live_forked(seed: int, scale: Scale, events: list[Event] | None = None, sabotage: str = "") -> Outcome:
    """One life in a child."""
    pool = Pool(1)
    plan = make_plan(seed, scale) if events is None else events
    (outcome,) = [*pool.begin(seed, scale, plan, sabotage), *pool.rest()]
    return outcome


def _child(pipe: int, seed: int, scale: Scale, events: list[Event], sabotage: str) -> None:
    try:
        try:
            outcome = live(seed, scale, events, sabotage)
        except BaseException as error:  # noqa: BLE001  # told to the parent, whatever it is
            import traceback

            outcome = Outcome(seed, violations=[f"{type(error).__name__}: {error}", traceback.format_exc()])
        with os.fdopen(pipe, "wb") as file:
            file.write(json.dumps(asdict(outcome)).encode())
    finally:
        os._exit(0)
