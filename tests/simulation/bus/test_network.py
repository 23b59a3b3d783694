"""The protocol's cores under a simulated network: a seed replays a failure."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.simulation.bus.world import World
from zcompute.bus import StreamSkip, protocol
from zcompute.bus.calls import Calls
from zcompute.bus.envelope import Cancel, Cast
from zcompute.bus.outgoing import Outgoing

TURNS = 150
AGENTS = 3


def one_thing(world: World, chance: random.Random) -> None:
    """Something that the application does, or that befalls the network."""
    agent = chance.choice(world.agents)
    dice = chance.random()
    if dice < 0.35:
        for _ in range(chance.randrange(1, 30)):
            agent.report(chance.choice("abc"))
    elif dice < 0.5:
        for _ in range(chance.randrange(1, 6)):
            agent.call(chance.random() < 0.5)
    elif dice < 0.54:
        for _ in range(chance.randrange(1, 4)):
            agent.give_up()
    elif dice < 0.62:
        for _ in range(chance.randrange(1, 20)):
            agent.cast()
    elif dice < 0.7:
        for _ in range(chance.randrange(1, 10)):
            world.change_state(chance.choice("xyz"))
    elif dice < 0.8:
        for _ in range(chance.randrange(1, 25)):
            world.append()
    elif dice < 0.84:
        for _ in range(chance.randrange(3)):  # nothing of them was sent yet
            agent.cast()
        world.cut(agent)
    elif dice < 0.85:
        world.keep_away(agent)
    elif dice < 0.9:
        world.half_open(agent, chance.randrange(2))
    elif dice < 0.97:
        world.lose_frame(agent, chance.randrange(2))
    elif dice < 0.99:
        world.restart(agent)
    else:
        world.restart_listener()


def run_seed(seed: int) -> World:
    """One run from its seed; raises AssertionError where a promise is broken."""
    chance = random.Random(seed)
    world = World(seed)
    for _ in range(TURNS):
        one_thing(world, chance)
        world.run(chance.choice((0.02, 0.1, 0.5)))
        world.check()
    world.settle()
    for agent in world.agents:
        last = max((seqs[-1] for seqs in world.committed.get(agent.name, {}).values()), default=0)
        assert last == agent.seq
    return world


def run_seeds(seeds: Iterable[int]) -> None:
    for seed in seeds:
        run_seed(seed)


@pytest.mark.parametrize("seed", range(25))
def test_nothing_is_lost_doubled_or_out_of_order(seed: int) -> None:
    run_seed(seed)


def test_the_runs_meet_what_they_are_about() -> None:
    worlds = [run_seed(seed) for seed in range(5)]
    assert sum(world.cancelled for world in worlds) > 3
    assert sum(world.listener_life for world in worlds) > 0
    assert sum(len(agent.cast_queued) for world in worlds for agent in world.agents) > sum(
        len(world.casts) for world in worlds
    )
    assert all(world.states and world.casts for world in worlds)
    assert any(isinstance(news, StreamSkip) for world in worlds for agent in world.agents for news in agent.told)


def keep_casts(outgoing: Outgoing) -> tuple[set[int], int]:
    """A loss that leaves the casts where they are."""
    casts = [envelope for queue in outgoing._work for envelope in queue if isinstance(envelope, Cast)]
    unsent, _ = CLEAR(outgoing)
    for cast in casts:
        outgoing.add_work(cast, len(cast.payload))
    return unsent, 0


CLEAR = Outgoing.clear
FAULTS: dict[str, tuple[type[Any], str, Callable[..., Any]]] = {
    "casts stay queued at a loss": (Outgoing, "clear", keep_casts),
    "a cancel cancels nothing": (Calls, "_on_cancel", lambda core, cancel, now, happenings: None),
    "a call that is given up is not cancelled": (
        Calls,
        "give_up",
        lambda core, call: core.calls.pop(call.call.call_id),
    ),
    "a lost peer's calls are served for ever": (Calls, "cancel_serving", lambda core: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_finds_a_core_that_breaks_this(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = FAULTS[fault]
    monkeypatch.setattr(owner, name, broken)
    if name == "_on_cancel":
        monkeypatch.setitem(protocol._RECEIVERS, Cancel, broken)
    with pytest.raises(AssertionError):
        run_seeds(range(25))  # about every third life shows it


def test_a_seed_replays_its_run() -> None:
    runs = []
    for _ in range(2):
        chance, world = random.Random(7), World(7)
        for _ in range(60):
            one_thing(world, chance)
            world.run(0.2)
        runs.append(
            (
                world.committed,
                world.casts,
                [agent.states for agent in world.agents],
                [agent.cursor for agent in world.agents],
                sorted(world.begun.values()),
            )
        )
    assert runs[0] == runs[1]


class Network(RuleBasedStateMachine):
    """What hypothesis may do with it, which shrinks a failure to its shortest form."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0, AGENTS)

    @rule(who=st.integers(0, AGENTS - 1), key=st.sampled_from("ab"), count=st.integers(1, 40))
    def report(self, who: int, key: str, count: int) -> None:
        for _ in range(count):
            self.world.agents[who].report(key)

    @rule(who=st.integers(0, AGENTS - 1), idempotent=st.booleans())
    def call(self, who: int, idempotent: bool) -> None:
        self.world.agents[who].call(idempotent)

    @rule(who=st.integers(0, AGENTS - 1))
    def give_up(self, who: int) -> None:
        self.world.agents[who].give_up()

    @rule(who=st.integers(0, AGENTS - 1), count=st.integers(1, 20))
    def cast(self, who: int, count: int) -> None:
        for _ in range(count):
            self.world.agents[who].cast()

    @rule(key=st.sampled_from("xy"), count=st.integers(1, 5))
    def change_state(self, key: str, count: int) -> None:
        for _ in range(count):
            self.world.change_state(key)

    @rule(count=st.integers(1, 40))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.world.append()

    @rule(ms=st.sampled_from((20, 100, 400, 1500)))
    def pass_time(self, ms: int) -> None:
        self.world.run(ms / 1000)

    @rule(who=st.integers(0, AGENTS - 1))
    def cut(self, who: int) -> None:
        self.world.cut(self.world.agents[who])

    @rule(who=st.integers(0, AGENTS - 1))
    def keep_away(self, who: int) -> None:
        self.world.keep_away(self.world.agents[who])

    @rule(who=st.integers(0, AGENTS - 1), direction=st.integers(0, 1))
    def half_open(self, who: int, direction: int) -> None:
        self.world.half_open(self.world.agents[who], direction)

    @rule(who=st.integers(0, AGENTS - 1), direction=st.integers(0, 1))
    def lose_frame(self, who: int, direction: int) -> None:
        self.world.lose_frame(self.world.agents[who], direction)

    @rule(who=st.integers(0, AGENTS - 1))
    def restart(self, who: int) -> None:
        self.world.restart(self.world.agents[who])

    @rule()
    def restart_listener(self) -> None:
        self.world.restart_listener()

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


TestNetwork = Network.TestCase
TestNetwork.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
