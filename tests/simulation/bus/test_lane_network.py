"""Reports to lanes that stall, owners that change and die, over a network that fails: a seed replays a run."""

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.simulation.bus.lane_world import KEYS, LANES, LIMITS, OWNERS, LaneWorld

TURNS = 120


def one_thing(world: LaneWorld, chance: random.Random) -> None:
    """Something that the hosts do, or that befalls owners, lanes and network."""
    dice, name, key = chance.random(), chance.choice(OWNERS), chance.choice(chance.choice((KEYS, KEYS[:2])))
    if dice < 0.5:
        for _ in range(chance.randrange(1, 10)):
            world.observe(chance.choice((key, chance.choice(KEYS))))
    elif dice < 0.65:
        world.end_step(key)
    elif dice < 0.73:
        world.stalled.symmetric_difference_update({(name, chance.choice(LANES))})
    elif dice < 0.83:
        world.move(key, chance.random() < 0.5)
        if chance.random() < 0.5:  # there and back, perhaps before the agent hears of it
            world.end_step(key)
            world.observe(key)
            world.run(chance.choice((0.1, 0.2, 0.3)))
            world.move(key, chance.random() < 0.5)
    elif dice < 0.88:
        world.change_lane(key)
    elif dice < 0.92:
        world.lose_frame(name, chance.randrange(2))
    elif dice < 0.95:
        world.cut(name)
    elif dice < 0.98:
        world.half_open(name, chance.randrange(2))
    else:
        world.kill(name)


@pytest.mark.parametrize("seed", range(20))
def test_order_per_instance_holds_whatever_lanes_and_owners_do(seed: int) -> None:
    chance, world = random.Random(seed), LaneWorld(seed)
    for _ in range(TURNS):
        one_thing(world, chance)
        world.run(chance.choice((0.02, 0.1, 0.4)))
    world.settle()


@pytest.mark.parametrize("seed", range(5))
def test_stalled_lanes_starve_no_instance_of_a_lane_that_works(seed: int) -> None:
    """Three of four lanes never commit. The agent knows no lane at first; all its instances change all the time."""
    world = LaneWorld(seed)
    world.stalled = {("k1", 1), ("k1", 2), ("k2", 1)}
    works = [key for key in KEYS if (world.owner_of[key], world.lane_of[key]) not in world.stalled]
    if not works:
        works = [KEYS[0]]
        world.owner_of[KEYS[0]], world.lane_of[KEYS[0]] = "k2", 2
        world.known_map = dict(world.owner_of)
    world.run(2.0)
    for _ in range(100):
        for key in KEYS:
            world.observe(key)
        world.run(0.2)
    for key in works:
        times = [world.applied_at[seq] for seq in world.applied[key]]
        assert len(times) > 15, (key, len(times))
        assert max(after - before for before, after in pairwise(times)) < 3.0, key
    for name in OWNERS:
        unacked = world.cores[name].reports_out.lanes.unacked
        assert all(count <= LIMITS.lane_credit for lane, count in unacked.items() if lane), unacked
    world.settle()


class Lanes(RuleBasedStateMachine):
    """What hypothesis may do with it, which shrinks a failure to its shortest form."""

    def __init__(self) -> None:
        super().__init__()
        self.world = LaneWorld(0)

    @rule(keys=st.lists(st.sampled_from(KEYS[:4]), min_size=1, max_size=8))
    def observe(self, keys: list[str]) -> None:
        for key in keys:
            self.world.observe(key)

    @rule(key=st.sampled_from(KEYS[:4]))
    def end_step(self, key: str) -> None:
        self.world.end_step(key)

    @rule(name=st.sampled_from(OWNERS), lane=st.sampled_from(LANES))
    def stall_or_release(self, name: str, lane: int) -> None:
        self.world.stalled.symmetric_difference_update({(name, lane)})

    @rule(key=st.sampled_from(KEYS[:4]), drain=st.booleans())
    def move(self, key: str, drain: bool) -> None:
        self.world.move(key, drain)

    @rule(key=st.sampled_from(KEYS[:4]))
    def change_lane(self, key: str) -> None:
        self.world.change_lane(key)

    @rule(name=st.sampled_from(OWNERS))
    def cut(self, name: str) -> None:
        self.world.cut(name)

    @rule(name=st.sampled_from(OWNERS), direction=st.integers(0, 1))
    def lose_frame(self, name: str, direction: int) -> None:
        self.world.lose_frame(name, direction)

    @rule(name=st.sampled_from(OWNERS))
    def kill(self, name: str) -> None:
        self.world.kill(name)

    @rule(ms=st.sampled_from((20, 100, 400, 2500)))
    def pass_time(self, ms: int) -> None:
        self.world.run(ms / 1000)

    def teardown(self) -> None:
        self.world.settle()


TestLanes = Lanes.TestCase
TestLanes.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
