"""What a seed does to its cell: a list of events, each by itself, so that a failing plan shrinks by leaving out."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.simulation.cell.kinds import ACTS, WALKS

FAULTS_MIN, FAULTS_MAX = 2, 8
AUDITED_EVERY = 256  # one seed of so many: a period of usage is a commit for each of 256 partitions, and costs thrice


@dataclass(frozen=True)
class Scale:
    """How large and long a simulated life is."""

    seconds: float = 5.0
    conductors: int = 2
    agents: int = 10
    creates: int = 10
    deletes: int = 5
    powers: int = 25
    acts: int = 8
    walks: int = 4
    theme: str = ""  # of the faults; "": each seed draws one

    @classmethod
    def of(cls, seconds: float, conductors: int, agents: int, theme: str = "") -> "Scale":
        """As much work a second and an agent as in the smallest life."""
        share = seconds / cls.seconds * agents / cls.agents
        counts = (max(2, int(count * share)) for count in (cls.creates, cls.deletes, cls.powers, cls.acts, cls.walks))
        return cls(seconds, conductors, agents, *counts, theme)


@dataclass(frozen=True)
class Event:
    """At this second of the life, this."""

    at_s: float
    kind: str
    who: str = ""
    other: str = ""
    for_s: float = 0.0
    number: int = 0

    def __str__(self) -> str:
        parts = [self.who, self.other, f"for {self.for_s:.3f} s" if self.for_s else "", f"#{self.number}"]
        return f"{self.at_s:7.3f} {self.kind} {' '.join(part for part in parts if part)}"


THEMES: dict[str, tuple[str, ...]] = {
    "mixed": ("freeze", "kill", "stall_hub", "stop", "kill_agent", "freeze_agent", "cut", "block", "isolate", "crash",
              "stall", "nasty", "slow", "failing", "full", "kill_all", "zombie", "deaf", "late", "race", "join", "leap",
              "database_clock", "stop_agent", "power_off", "late_commands"),
    "zombies": ("zombie", "zombie", "zombie", "freeze", "stall_hub", "kill", "nasty", "late"),
    "deaths": ("kill", "kill_all", "stop", "kill_agent", "nasty", "race", "race"),
    "wires": ("block", "deaf", "deaf", "cut", "isolate", "slow", "freeze_agent", "late"),
    "database": ("nasty", "nasty", "nasty", "crash", "stall", "kill"),
    "stateless": ("lose_state", "lose_file", "lose_file", "kill_agent", "kill"),
    "members": ("join", "join", "absent", "stop", "stop", "kill", "freeze", "block"),
    "clocks": ("leap", "leap", "leap", "database_clock", "stop", "kill", "freeze", "kill_agent"),
    "moves": ("power_off", "power_off", "come_back", "come_back",
              "late_commands", "late_commands", "kill", "kill_agent", "freeze", "failing",
              "isolate", "block", "full"),
    "agents": ("kill_agent", "kill_agent", "stop_agent", "freeze_agent", "deaf", "kill", "failing", "full"),
}  # fmt: skip
OFTEN = ("mixed", "zombies", "deaths", "wires", "database", "agents", "moves")  # twice as often as the others


def make_plan(seed: int, scale: Scale) -> list[Event]:
    """The events of a seed, in their order. A seed has a theme, so that faults of a kind meet."""
    dice = random.Random(f"{seed} plan")
    busy_s = scale.seconds * 0.9
    events = [Event(0.0, "builds", number=dice.randrange(3))]
    if seed % AUDITED_EVERY == 0:
        events.append(Event(0.0, "audit"))
    for number in range(scale.creates):
        at_s = 0.3 + dice.random() * busy_s * 0.6
        events.append(Event(at_s, "create", number=number))
        if number < scale.deletes:
            events.append(Event(at_s + dice.choice([0.05, 0.2, 0.6, 2.0]), "delete", number=number))
    for _ in range(scale.powers):
        events.append(Event(0.5 + dice.random() * busy_s, "power", number=dice.randrange(scale.creates)))
    kinds = THEMES[scale.theme or dice.choice([*THEMES, *OFTEN])]
    share = scale.seconds / 5.0
    numbers = itertools.count(scale.creates)
    for _ in range(dice.randint(int(FAULTS_MIN * share), int(FAULTS_MAX * share))):
        kind, at_s = dice.choice(kinds), 0.3 + dice.random() * busy_s
        scene = SCENES.get(kind)
        events += [_fault(dice, scale, kind, at_s)] if scene is None else scene(dice, scale, at_s, numbers)
    events += _acts(random.Random(f"{seed} acts"), scale, busy_s)
    events += _walks(random.Random(f"{seed} walks"), scale, busy_s)
    return sorted(events, key=lambda event: event.at_s)


def _acts(dice: random.Random, scale: Scale, busy_s: float) -> Iterator[Event]:
    """Actions of servers, most of them refused since another is under way or the state is wrong."""
    for _ in range(scale.acts):
        at_s = 0.6 + dice.random() * busy_s
        (action,) = dice.choices([*ACTS], [*ACTS.values()])
        yield Event(at_s, "act", action, number=dice.randrange(scale.creates))


def _walks(dice: random.Random, scale: Scale, busy_s: float) -> Iterator[Event]:
    """Servers that move, each its own way; sometimes all to the same host."""
    crowded = _agent(dice, scale) if dice.random() < 0.2 else ""
    for number in dice.sample(range(scale.creates), min(scale.walks, scale.creates)):
        at_s = 1.0 + dice.random() * busy_s
        yield Event(
            at_s, "walk", ",".join(dice.choice(WALKS)), crowded, dice.choice([0.0, 0.003, 0.02, 0.1, 0.5]), number
        )


def _zombie(dice: random.Random, scale: Scale, at_s: float, _: Iterator[int]) -> list[Event]:
    """A conductor stops with batches under way, some of which take long to arrive, and goes on when others own."""
    stop_s = at_s + dice.uniform(0.0002, 0.004)
    return [
        Event(at_s, "late_packets", for_s=0.01),
        Event(at_s, "power_all"),
        Event(stop_s, "freeze", _conductor(dice, scale), for_s=dice.choice([0.75, 0.9, 1.3])),
        Event(stop_s + 0.001, "power_all"),
    ]


def _deaf(dice: random.Random, scale: Scale, at_s: float, _: Iterator[int]) -> list[Event]:
    """An agent is heard and hears no verdict, then its links break: it must say again what was taken."""
    agent = _agent(dice, scale)
    names = [f"c{n}" for n in range(1, scale.conductors + 1)]
    end_s = at_s + dice.choice([0.05, 0.3, 0.8])
    return [
        *(Event(at_s, "block", name, agent, for_s=end_s + 0.01 - at_s) for name in names),
        Event(at_s + 0.005, "power_all", agent),
        Event(at_s + (end_s - at_s) / 2, "power_all", agent),
        *(Event(end_s, "cut", name, agent) for name in names),
    ]


def _late(dice: random.Random, scale: Scale, at_s: float, numbers: Iterator[int]) -> list[Event]:
    """Commands of a conductor arrive when another has taken over and adopted."""
    name = _conductor(dice, scale)
    return [
        *(Event(at_s, "create", number=next(numbers)) for _ in range(3)),
        Event(at_s + 0.001, "isolate", name, for_s=dice.choice([0.95, 1.2]), number=0),
        Event(at_s + dice.choice([0.02, 0.1]), "freeze", name, for_s=2.0),
    ]


def _race(dice: random.Random, scale: Scale, at_s: float, numbers: Iterator[int]) -> list[Event]:
    """One conductor dies, then the other, while hypervisors take their time."""
    names = [f"c{n}" for n in range(1, scale.conductors + 1)]
    dice.shuffle(names)
    chosen = [next(numbers) for _ in range(3)]
    return [
        Event(at_s, "builds", number=2),
        *(Event(at_s, "create", number=number) for number in chosen),
        *(Event(at_s + 0.2, "delete", number=number) for number in chosen[:2]),
        Event(at_s + 0.3, "kill", names[0], for_s=0.2),
        Event(at_s + dice.choice([1.0, 1.1, 1.3]), "kill", names[-1], for_s=0.2),
    ]


def _come_back(dice: random.Random, scale: Scale, at_s: float, _: Iterator[int]) -> list[Event]:
    """A host that was forced down is let work again while schedulers still look for hosts for what is to leave it."""
    return [
        Event(at_s, "slow_schedulers", for_s=dice.choice([0.6, 1.2])),
        Event(at_s + 0.01, "power_off", _agent(dice, scale), for_s=0.02, number=2),
    ]


Scene = Callable[[random.Random, Scale, float, Iterator[int]], list[Event]]
SCENES: dict[str, Scene] = {"zombie": _zombie, "deaf": _deaf, "late": _late, "race": _race, "come_back": _come_back}


def _conductor(dice: random.Random, scale: Scale) -> str:
    return f"c{dice.randint(1, scale.conductors)}"


def _agent(dice: random.Random, scale: Scale) -> str:
    return f"a{dice.randint(1, scale.agents)}"


def _fault(dice: random.Random, scale: Scale, kind: str, at_s: float) -> Event:
    conductor, agent = _conductor(dice, scale), _agent(dice, scale)
    if kind in ("kill", "freeze", "stall_hub", "stop"):
        return Event(at_s, kind, conductor, for_s=dice.choice([0.05, 0.3, 0.8, 1.2, 2.0]))
    if kind == "leap":
        return Event(at_s, kind, dice.choice([conductor, agent]), for_s=dice.choice([0.4, 0.7, 2.0, 30.0]))
    if kind == "join":
        return Event(
            at_s, kind, f"c{scale.conductors + 1}", for_s=dice.choice([0.3, 1.0, 2.5]), number=dice.randrange(3)
        )
    if kind == "absent":
        return Event(0.0, kind, conductor, for_s=at_s)
    if kind == "lose_file":
        return Event(at_s, kind, agent, for_s=dice.choice([0.05, 0.5, 1.5]), number=dice.randrange(8))
    if kind == "database_clock":
        return Event(at_s, kind, for_s=dice.choice([1.0, 20.0, 3600.0]))
    if kind == "power_off":
        return Event(at_s, kind, agent, for_s=dice.choice([0.3, 1.0, 2.0, 4.0]), number=dice.randrange(4))
    if kind in ("kill_agent", "stop_agent", "freeze_agent", "lose_state"):
        return Event(at_s, kind, agent, for_s=dice.choice([0.05, 0.5, 1.5, 2.5]))
    if kind in ("cut", "block"):
        others = [agent, agent, agent, "r1", "s1", *(f"c{n}" for n in range(1, scale.conductors + 1))]
        ends = [conductor, dice.choice([other for other in others if other != conductor])]
        dice.shuffle(ends)
        return Event(at_s, kind, ends[0], ends[1], for_s=dice.choice([0.1, 0.5, 1.5, 3.0]))
    if kind == "isolate":
        return Event(at_s, kind, conductor, for_s=dice.choice([0.5, 1.5, 3.0]), number=dice.randrange(3))
    return Event(at_s, kind, for_s=dice.choice([0.05, 0.3, 0.7, 1.5]))
