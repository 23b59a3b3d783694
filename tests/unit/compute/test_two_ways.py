"""Reports of one instance over a direct link and a relay that come and go: the owner's watermark keeps the order.

Each way keeps the order of what it carries and repeats it when its link is back (as the bus does); between the ways
there is none. The owner judges with the real rule.
"""

import random
from collections import deque

import msgspec
import pytest

from tests.unit.conductor.ledger_world import instance
from zcompute.bus import Ack
from zcompute.compute.dispatch import Dispatch
from zcompute.compute.outbox import Entry
from zcompute.compute.settings import Settings
from zcompute.compute.ways import Ways
from zcompute.conductor.cell.observations import judge_observation
from zcompute.objects.report import FINAL_VERDICTS, VERDICT_APPLIED, VERDICT_BUSY, Observation

LIMITS = Settings(relay_after_ms=50, answer_ms_max=500, straggler_ms=20, busy_ms_min=10, busy_ms_max=40)
OWNER, RELAY = "k1", "k2"
UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
STEPS = 600


class Way:
    """A link to an owner or a relay. What was sent and not answered is repeated when it comes back."""

    def __init__(self) -> None:
        self.up = True
        self.unanswered: dict[int, int] = {}  # seq: power state
        self.on_way: deque[tuple[int, int]] = deque()

    def send(self, seq: int, power_state: int) -> None:
        self.unanswered[seq] = power_state
        self.on_way.append((seq, power_state))

    def lose(self) -> None:
        self.up = False
        self.on_way.clear()

    def back(self) -> None:
        if not self.up:
            self.up = True
            self.on_way.extend(self.unanswered.items())


class World:
    """One agent with one instance, whose power state is the newest sequence."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.dispatch = Dispatch(LIMITS)
        self.dispatch.remap(lambda _: OWNER)
        self.routes = Ways(LIMITS, "agent")
        self.way = OWNER
        self.links = {OWNER: Way(), RELAY: Way()}
        self.row = instance(UUID, host="h1", generation=1)
        self.key = self.row.uuid
        self.seq = 0
        self.owed: dict[int, int] = {}
        self.applied: list[int] = []

    def observe(self) -> None:
        """The newest state folds the older, as in the outbox."""
        self.seq += 1
        for seq in list(self.owed):
            self.dispatch.discard(seq)
            del self.owed[seq]
        self.owed[self.seq] = self.seq
        self.dispatch.add(Entry(self.seq, self.key, "h1", b""))

    def pump(self) -> None:
        self.dispatch.tick(self.now)
        usable = {name: True for name, link in self.links.items() if link.up}
        peer = self.routes.to(OWNER, usable, self.now)
        if not peer:
            return
        if peer != self.way:
            self.dispatch.way_changed(OWNER, peer)
            self.way = peer
        for entry in self.dispatch.take(OWNER, self.now, 100, peer=peer):
            self.links[peer].send(entry.seq, self.owed[entry.seq])

    def deliver(self, name: str) -> None:
        """The next report of a way comes to the owner, and its verdict back if the way still stands."""
        link = self.links[name]
        if not link.up or not link.on_way:
            return
        seq, power_state = link.on_way.popleft()
        if name == RELAY and self.random.random() < 0.1:
            self.answer(name, seq, VERDICT_BUSY)
            return
        body = Observation(instance_uuid=self.key, host="h1", generation=1, power_state=power_state)
        judged = judge_observation(self.row, body, 1, seq, None)
        if judged.decision is not None and judged.decision.instance is not None:
            self.row = judged.decision.instance
            self.applied.append(power_state)
        assert judged.verdict in FINAL_VERDICTS
        if self.random.random() < 0.8:
            self.answer(name, seq, judged.verdict)

    def answer(self, name: str, seq: int, verdict: str) -> None:
        self.links[name].unanswered.pop(seq, None)
        if self.dispatch.answered(name, Ack(self.key, seq, verdict), self.now):
            self.owed.pop(seq, None)

    def step(self) -> None:
        self.now += 0.02
        draw = self.random.random()
        link_name = self.random.choice((OWNER, RELAY))
        link = self.links[link_name]
        if draw < 0.3:
            self.observe()
        elif draw < 0.36 and link.up:
            link.lose()
            self.dispatch.relay_lost(link_name)
        elif draw < 0.45:
            link.back()
        else:
            self.deliver(link_name)
        self.pump()

    def settle(self) -> None:
        for link in self.links.values():
            link.back()
        for _ in range(400):
            self.now += 0.05
            self.pump()
            for name in self.links:
                self.deliver(name)


@pytest.mark.parametrize("seed", range(40))
def test_an_older_state_never_overwrites_a_newer_one_and_the_newest_arrives(seed: int) -> None:
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    world.settle()
    assert world.applied == sorted(set(world.applied)), "older behind newer, or one twice"
    assert world.row.power_state == world.seq
    assert not world.owed


def test_the_same_epoch_and_sequence_decide_whichever_way_a_report_comes() -> None:
    row = instance(UUID, host="h1", generation=1)
    newer = Observation(instance_uuid=row.uuid, host="h1", generation=1, power_state=4)
    judged = judge_observation(row, newer, 2, 6, None)
    assert judged.verdict == VERDICT_APPLIED
    assert judged.decision is not None
    row = judged.decision.instance or row
    older = msgspec.structs.replace(newer, power_state=1)
    assert judge_observation(row, older, 2, 5, None).verdict == "stale"
    assert judge_observation(row, older, 1, 99, None).verdict == "stale", "of a former life of the agent"
    assert judge_observation(row, newer, 2, 6, None).verdict == "already_there"
