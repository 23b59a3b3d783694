"""Runs seeds in forked processes, some in each: a fork's copied pages cost as much as a tenth of a life.

Nothing of one life reaches another: each has a loop, a network, a database and files of its own.
"""

import gc
import json
import os
import select
import time as real_time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from tests.simulation.cell.loop import BEGIN_S
from tests.simulation.cell.plan import Event, Scale, make_plan

clock_s = real_time.process_time
LIVES_OF_A_CHILD = 16  # what a life has used is given back by its process' end only: 10 MB each
FILES_OF_A_LIFE_MAX = 8192


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


_lived: list[object] = []  # their greenlets must not end: what they hold back would be done in another life


def live(seed: int, scale: Scale, events: list[Event], sabotage: str = "", verbose: bool = False) -> Outcome:
    """One life, in this very process, which is of no use afterwards."""
    import gevent

    from tests.simulation.cell import stage

    began_s = clock_s()
    stage.quieten(verbose)
    if not _lived:
        stage.replace_clocks()
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


@dataclass(frozen=True)
class Life:
    """What a child is to live."""

    seed: int
    scale: Scale
    events: list[Event]
    sabotage: str = ""


class _Child:
    """A process with the lives that it has not told of yet."""

    def __init__(self, process: int, lives: list[Life]) -> None:
        self.process = process
        self.lives = deque(lives)
        self.told = bytearray()

    def hear(self, data: bytes) -> Iterator[Outcome]:
        """A line for each life."""
        self.told += data
        while (end := self.told.find(b"\n")) >= 0:
            line = bytes(self.told[:end])
            del self.told[: end + 1]
            self.lives.popleft()
            yield Outcome(**json.loads(line))


class Pool:
    """So many processes at once, each of which lives some lives; outcomes come as they are known."""

    def __init__(self, jobs: int, lives: int = LIVES_OF_A_CHILD) -> None:
        self._jobs = max(1, jobs)
        self._lives_max = max(1, lives)
        self._poll = select.poll()
        self._next: list[Life] = []
        self._children: dict[int, _Child] = {}  # by pipe

    def begin(self, life: Life) -> Iterator[Outcome]:
        """Begin one, once there is room; what is known meanwhile is handed out."""
        self._next.append(life)
        # A guard is switched off for the rest of a process' life.
        if len(self._next) >= self._lives_max or life.sabotage:
            while len(self._children) >= self._jobs:
                yield from self._wait()
            self._fork()

    def rest(self) -> Iterator[Outcome]:
        """All that are still under way."""
        while self._next or self._children:
            if self._next and len(self._children) < self._jobs:
                self._fork()
            yield from self._wait()

    def _fork(self) -> None:
        lives, self._next = self._next[: self._lives_max], self._next[self._lives_max :]
        pipe_in, pipe_out = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(pipe_in)
            _be_child(pipe_out, lives)
        os.close(pipe_out)
        self._children[pipe_in] = _Child(process, lives)
        self._poll.register(pipe_in, select.POLLIN | select.POLLHUP)

    def _wait(self) -> Iterator[Outcome]:
        for pipe, _ in self._poll.poll():
            child = self._children[pipe]
            data = os.read(pipe, 1 << 16)
            if data:
                yield from child.hear(data)
                continue
            self._poll.unregister(pipe)
            os.close(pipe)
            del self._children[pipe]
            _, status = os.waitpid(child.process, 0)
            if child.lives and status:
                yield Outcome(child.lives.popleft().seed, [f"died with status {status}"])
            self._next = [*child.lives, *self._next]


def live_forked(seed: int, scale: Scale, events: list[Event] | None = None, sabotage: str = "") -> Outcome:
    """One life in a child."""
    pool = Pool(1, 1)
    life = Life(seed, scale, make_plan(seed, scale) if events is None else events, sabotage)
    (outcome,) = [*pool.begin(life), *pool.rest()]
    return outcome


def _be_child(pipe: int, lives: list[Life]) -> None:
    """Live them one after the other; the one that fails is the last, for what it leaves behind is not known."""
    status = 1
    try:
        first_file = pipe + 1 + max(map(int, os.listdir("/proc/self/fd")))
        with os.fdopen(pipe, "wb") as file:
            for life in lives:
                outcome = _live(life)
                file.write(json.dumps(asdict(outcome)).encode() + b"\n")
                file.flush()
                if outcome.failed:
                    break
                os.closerange(first_file, first_file + FILES_OF_A_LIFE_MAX)
        status = 0
    finally:
        os._exit(status)


def _live(life: Life) -> Outcome:
    try:
        return live(life.seed, life.scale, life.events, life.sabotage)
    except BaseException as error:  # noqa: BLE001  # told to the parent, whatever it is
        return Outcome(life.seed, [f"{type(error).__name__}: {error}", traceback.format_exc()])
