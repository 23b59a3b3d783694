"""An agent's dispatch over simulated links to two owners: lanes stall, partitions move, owners die, frames are lost.

What must hold: reports that are not folded take effect in the order of their making, one by one; an older one that
comes late is one that was folded, and takes no effect; no lane owes more than its credit; nothing is lost.
"""

import random

from tests.simulation.bus.world import HEARTBEAT_S, RANGES, STEP_S, Wire, greeting
from zcompute.bus.envelope import Ack, Hello, Report, Welcome
from zcompute.bus.greeting import peer_of
from zcompute.bus.happenings import AcksArrived, Happening, LinkUp, ReportsArrived
from zcompute.bus.limits import Limits
from zcompute.bus.protocol import LinkCore, State
from zcompute.compute.dispatch import Dispatch
from zcompute.compute.outbox import Entry
from zcompute.compute.settings import Settings
from zcompute.objects.report import VERDICT_ALREADY_THERE, VERDICT_APPLIED, VERDICT_BUSY, VERDICT_NOT_OWNER
from zcompute.objects.report import VERDICT_STALE as STALE

OWNERS = ("k1", "k2")
LANES = (1, 2)
KEYS = tuple(f"i{n}" for n in range(12))
LIMITS = Limits(report_credit=24, lane_credit=3, report_batch=4, batch_envelopes=8, acks_per_envelope_max=5)
SETTINGS = Settings(frame_reports_max=8, answer_ms_max=2_000, answer_again_ms_max=4_000)
MAP_DELAY_S = 0.3
RETRY_MS = 100


class Owner:
    """A conductor's reports and lanes; what it has not committed dies with it."""

    def __init__(self, world: "LaneWorld", name: str) -> None:
        self.world = world
        self.name = name
        self.life = 0
        self.begin()

    def begin(self) -> None:
        self.life += 1
        self.session = LinkCore(LIMITS, interfaces=lambda: RANGES)
        self.waiting: dict[int, list[Report]] = {lane: [] for lane in LANES}

    def arrive(self, reports: list[Report]) -> None:
        acks = []
        lanes = self.session.reports_in.lanes
        for report in reports:
            lane = self.world.lane_of[report.key]
            if self.world.owner_of[report.key] != self.name:
                acks.append(Ack(report.key, report.seq, VERDICT_NOT_OWNER, version=self.world.version))
            elif not lanes.admit(lane):
                acks.append(Ack(report.key, report.seq, VERDICT_BUSY, lane=lane, retry_after_ms=RETRY_MS))
            else:
                self.waiting[lane].append(report)
        self.session.ack(acks)

    def commit(self, lane: int, count: int) -> None:
        batch, self.waiting[lane] = self.waiting[lane][:count], self.waiting[lane][count:]
        acks = [Ack(one.key, one.seq, self.world.decide(one), lane=lane) for one in batch]
        for _ in batch:
            self.session.reports_in.lanes.settle(lane)
        self.world.chance.shuffle(acks)
        self.session.ack(acks)

    def let_go(self, key: str, drain: bool) -> None:
        """The key leaves its lane: what was decided has committed before, what was not is answered not_owner."""
        lane = self.world.lane_of[key]
        if drain:
            self.commit(lane, len(self.waiting[lane]))
            return
        dropped = [report for report in self.waiting[lane] if report.key == key]
        self.waiting[lane] = [report for report in self.waiting[lane] if report.key != key]
        for _ in dropped:
            self.session.reports_in.lanes.settle(lane)
        version = self.world.version
        self.session.ack([Ack(one.key, one.seq, VERDICT_NOT_OWNER, version=version) for one in dropped])


class LaneWorld:
    """Everything in it follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 1.0
        self.version = 1
        self.owner_of = {key: self.chance.choice(OWNERS) for key in KEYS}
        self.lane_of = {key: self.chance.choice(LANES) for key in KEYS}
        self.known_map = dict(self.owner_of)
        self.map_due: list[tuple[float, dict[str, str]]] = []
        self.stalled: set[tuple[str, int]] = set()
        self.applied: dict[str, list[int]] = {key: [] for key in KEYS}
        self.owners = {name: Owner(self, name) for name in OWNERS}
        # the agent
        self.cores = {name: LinkCore(LIMITS, interfaces=lambda: RANGES) for name in OWNERS}
        self.wires: dict[str, tuple[Wire, Wire]] = {}
        self.half_open_since: dict[str, float] = {}
        self.hello_due = dict.fromkeys(OWNERS, 0.0)
        self.dispatch = Dispatch(SETTINGS, self._agent_lane)
        self.dispatch.remap(lambda key: self.known_map[key])
        self.outbox: dict[int, Entry] = {}
        self.observed: dict[str, int] = {}
        self.results: dict[str, list[int]] = {key: [] for key in KEYS}
        self.folded: set[int] = set()
        self.applied_at: dict[int, float] = {}
        self.seq = 0
        self.calm = False

    def _agent_lane(self, owner: str, key: str) -> int:
        return self.cores[owner].reports_out.lanes.lane_of(key) if owner in self.cores else 0

    # What the application does

    def observe(self, key: str) -> None:
        """A newer state, which folds the one that is owed."""
        former = self.observed.get(key)
        self.observed[key] = self._make(key)
        if former in self.outbox:
            del self.outbox[former]
            self.folded.add(former)
            self.dispatch.discard(former)

    def end_step(self, key: str) -> None:
        """A result, which is never folded."""
        self.results[key].append(self._make(key))

    def _make(self, key: str) -> int:
        self.seq += 1
        entry = self.outbox[self.seq] = Entry(self.seq, key, "h1", b"x")
        self.dispatch.add(entry)
        return self.seq

    def decide(self, report: Report) -> str:
        """The owner's decision. An older one that comes late may only be one that was folded."""
        seqs = self.applied[report.key]
        if report.seq in seqs:
            return VERDICT_ALREADY_THERE
        if seqs and report.seq < seqs[-1]:
            assert report.seq in self.folded, (report.key, report.seq, seqs[-3:])
            return STALE
        seqs.append(report.seq)
        self.applied_at[report.seq] = self.now
        return VERDICT_APPLIED

    # Faults

    def move(self, key: str, drain: bool) -> None:
        """The key's partition goes to the other owner."""
        old = self.owner_of[key]
        drain = drain and (old, self.lane_of[key]) not in self.stalled
        self.owners[old].let_go(key, drain)
        self.owner_of[key] = OWNERS[1 - OWNERS.index(old)]
        self.version += 1
        self.map_due.append((self.now + MAP_DELAY_S, dict(self.owner_of)))

    def change_lane(self, key: str) -> None:
        """The key's partition goes to the owner's other lane, by the last batch of the old one."""
        owner, lane = self.owner_of[key], self.lane_of[key]
        if (owner, lane) not in self.stalled:
            self.owners[owner].let_go(key, True)
            self.lane_of[key] = LANES[1 - LANES.index(lane)]

    def kill(self, name: str) -> None:
        """kill -9 of an owner; its partitions stay, its lanes are others."""
        self.cut(name)
        self.owners[name].begin()

    def cut(self, name: str) -> None:
        self.wires.pop(name, None)
        self.half_open_since.pop(name, None)
        core = self.cores[name]
        self._happen_at_agent(name, core.lost("cut", self.now))
        if core.state is State.HELLO_SENT:
            core.state = State.DOWN
        self.owners[name].session.lost("cut", self.now)

    def lose_frame(self, name: str, direction: int) -> None:
        if name in self.wires and self.cores[name].state is State.UP:
            self.wires[name][direction].lose_next = True

    def half_open(self, name: str, direction: int) -> None:
        if name in self.wires:
            self.wires[name][direction].dead = True
            self.half_open_since.setdefault(name, self.now)

    # Time

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.step()
            self.check()

    def step(self) -> None:
        self.now += STEP_S
        for name, since in list(self.half_open_since.items()):
            if self.now - since >= HEARTBEAT_S:
                self.cut(name)
        while self.map_due and self.map_due[0][0] <= self.now:
            self.known_map = self.map_due.pop(0)[1]
            self.dispatch.remap(lambda key: self.known_map[key])
        for name in OWNERS:
            self._commit(name)
            self._connect(name)
            self._carry(name)
            self._happen_at_agent(name, self.cores[name].tick(self.now))
            self.owners[name].session.tick(self.now)
        self._pump()

    def _commit(self, name: str) -> None:
        for lane in LANES:
            if (name, lane) not in self.stalled and (self.calm or self.chance.random() < 0.5):
                self.owners[name].commit(lane, self.chance.randrange(1, 6))

    def _connect(self, name: str) -> None:
        core = self.cores[name]
        if core.state is State.HELLO_SENT and self.now - core.hello_at > 1.0:
            core.state = State.DOWN
        if core.state is not State.DOWN or self.now < self.hello_due[name]:
            return
        self.hello_due[name] = self.now + 0.1
        if name not in self.wires:
            self.wires[name] = (Wire(self.chance), Wire(self.chance))
        self.wires[name][0].put(core.begin_hello(greeting(Hello, "agent", "a1"), self.now), self.now)

    def _pump(self) -> None:
        self.dispatch.tick(self.now)
        for owner, key, seq in self.dispatch.given_up():
            self.cores[owner].reports_out.withdraw(key, seq)
        for owner in self.dispatch.owners():
            core = self.cores[owner]
            if core.state is State.UP:
                out = core.reports_out
                taken = self.dispatch.take(owner, self.now, out.credit, out.lane_room)
                count = core.report([Report(entry.key, entry.seq, entry.payload) for entry in taken])
                self.dispatch.untake(owner, taken[count:])

    def _carry(self, name: str) -> None:
        wires = self.wires.get(name)
        if wires is None:
            return
        core, owner = self.cores[name], self.owners[name]
        for sender, wire in ((core, wires[0]), (owner.session, wires[1])):
            while sender.state is State.UP and (frame := sender.take_frame(self.now)) is not None:
                wire.put(frame, self.now)
        while (frame := wires[0].take(self.now)) is not None:
            for happening in owner.session.receive(frame, self.now):
                if isinstance(happening, Hello):
                    self._admit(name, happening)
                elif isinstance(happening, ReportsArrived):
                    owner.arrive(happening.reports)
        while self.wires.get(name) is wires and (frame := wires[1].take(self.now)) is not None:
            self._happen_at_agent(name, core.receive(frame, self.now))

    def _admit(self, name: str, hello: Hello) -> None:
        owner = self.owners[name]
        if owner.session.peer is not None and hello.link_number <= owner.session.link_number:
            return
        welcome = greeting(Welcome, name, f"{name}.{owner.life}")
        welcome.report_credit, welcome.lane_credit = LIMITS.report_credit, LIMITS.lane_credit
        owner.session.accept(hello, peer_of(hello, "", LIMITS), welcome, self.now)

    def _happen_at_agent(self, name: str, happenings: list[Happening]) -> None:
        for happening in happenings:
            if isinstance(happening, LinkUp) and not happening.same_incarnation:
                self.dispatch.link_lost(name)
            elif isinstance(happening, AcksArrived):
                for ack in happening.acks:
                    if self.dispatch.answered(name, ack, self.now):
                        self.outbox.pop(ack.seq, None)

    # What must hold

    def check(self) -> None:
        """What holds at any time."""
        for owner in self.owners.values():
            reports = owner.session.reports_in
            assert reports.over_credit == 0
            assert all(count <= LIMITS.lane_credit for count in reports.lanes.owed.values()), reports.lanes.owed
            assert {lane: len(some) for lane, some in owner.waiting.items() if some} == reports.lanes.owed
        owed_results = sum(seq in self.outbox for seqs in self.results.values() for seq in seqs)
        assert len(self.outbox) <= len(KEYS) + owed_results, "one state an instance"

    def settle(self) -> None:
        """No more faults: all is answered, in the order in which it was made."""
        self.calm = True
        self.stalled.clear()
        for wires in self.wires.values():
            for wire in wires:
                wire.lose_next = False
        self.run(40)
        assert not self.outbox, list(self.outbox.values())[:5]
        assert len(self.dispatch) == 0
        assert not self.dispatch._lines, "nothing is remembered of what is over"
        for key in KEYS:
            assert set(self.results[key]) <= set(self.applied[key])
            if key in self.observed:
                assert self.observed[key] in self.applied[key], "the newest state took effect"
            assert self.applied[key] == sorted(self.applied[key])
