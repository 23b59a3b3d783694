"""Diallers and a listener over a simulated network and clock: everything in it follows from the seed.

A connection carries frames in order, each direction with its own delay; different connections overtake one another. It
can be cut, lose a frame, or be half open: one direction swallows frames until its silence is noticed. Either side may
be killed and begin anew with what it has on disk: an agent's outbox and cursor, the listener's commits, states and log.

TCP under a ROUTER that must deliver loses no frame of a connection that lasts. The protocol survives it all the same,
but for state events: one whose frame is lost alone is missing until the next version or link.
"""

import random
from collections import deque
from typing import Any

from zcompute.bus.envelope import PROTOCOL_MINOR, Ack, Call, Cast, Event, Hello, Reply, Report, Welcome, decode_frame
from zcompute.bus.errors import BusError, LinkDown
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.greeting import peer_of
from zcompute.bus.happenings import AcksArrived, Happening, LinkUp, OpenCall, ReportsArrived
from zcompute.bus.limits import Limits
from zcompute.bus.protocol import LinkCore, State
from zcompute.bus.streams import Streams

LIMITS = Limits(
    report_credit=20, report_batch=4, stream_credit=12, stream_batch=3, batch_envelopes=8, acks_per_envelope_max=5
)
STEP_S = 0.02
HEARTBEAT_S = 1.5
ANSWER_S = 5.0
AWAY_S = 4.0  # longer than a listener waits before it cancels what it serves a lost link
CANCEL_S_MAX = 0.4  # a cancel is there by then, on a connection that loses nothing
ANSWER_SHARE = 0.03  # of the calls being served, in a step: most are open for a second
STREAM = "news"
STREAM_EVENTS = 30
RANGES = {"echo": ((1, 0), (1, 0))}


def greeting(kind: type[Any], service_id: str, incarnation: str) -> Any:
    return kind(
        protocol_major=1, protocol_minor=PROTOCOL_MINOR, link_number=0, service_id=service_id, incarnation=incarnation,
        role="conductor", cell="c1", release="1", hosts=[], interfaces=RANGES, topics=[], attributes=b"\x80",
        report_credit=LIMITS.report_credit,
    )  # fmt: skip


class Wire:
    """One direction of a connection."""

    def __init__(self, chance: random.Random) -> None:
        self.frames: deque[tuple[float, bytes]] = deque()
        self.dead = False
        self.lose_next = False
        self.lost: list[bytes] = []
        self._chance = chance

    def put(self, frame: bytes, now: float) -> None:
        if self.dead or self.lose_next:
            self.lose_next = False
            self.lost.append(frame)
            return
        earliest = self.frames[-1][0] if self.frames else 0.0
        self.frames.append((max(earliest, now + self._chance.choice((0.0, 0.01, 0.05, 0.3))), frame))

    def take(self, now: float) -> bytes | None:
        if self.frames and self.frames[0][0] <= now:
            return self.frames.popleft()[1]
        return None


class Agent:
    """A dialler with its outbox, its calls and casts, and what it hears; `life` counts its restarts."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.life = 0
        self.outbox: dict[tuple[str, int], Report] = {}  # durable: survives a restart
        self.seq = 0
        self.seq_cast = 0
        self.told: list[StreamEvents | StreamSkip] = []
        self.cursor = 0  # durable too
        self.calls: list[OpenCall] = []
        self.settled: list[OpenCall] = []
        self.given_up: list[OpenCall] = []
        self.cancels: list[tuple[str, float, Wire]] = []  # text of a call given up, when, on its way by this wire
        self.cast_queued: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """A new process: what was in memory is gone."""
        self.life += 1
        self.core = LinkCore(LIMITS, interfaces=lambda: RANGES)
        self.core.link_number = self.life * 1000
        self.core.follow(STREAM, "", self.cursor, self.world.now)
        self.calls.clear()
        self.offered_at: dict[tuple[str, int], float] = {}
        self.waiting: deque[StreamEvents | StreamSkip] = deque()
        self.states: dict[str, int] = {}  # the newest version heard, by key
        self.connected = False
        self.hello_due = 0.0

    def report(self, key: str) -> None:
        self.seq += 1
        self.outbox[key, self.seq] = Report(key, self.seq, b"x")

    def call(self, idempotent: bool) -> None:
        text = f"{self.name}.{self.life}.{self.core._next_call_id}".encode()
        call = Call(0, "echo.say", 1, 0, 3000, "-", text)
        open_call = OpenCall(call, "echo", self.world.now + 3.0, idempotent)
        try:
            self.core.call(open_call)
        except BusError:
            return
        self.calls.append(open_call)
        if not idempotent:
            self.world.once.add(text.decode())

    def give_up(self) -> None:
        """The caller of the oldest open call is killed."""
        for open_call in list(self.core.calls.values())[:1]:
            if self.core.state is State.UP:
                text = open_call.call.payload.decode()
                self.cancels.append((text, self.world.now, self.world.wires[self.name][0]))
            self.core.give_up(open_call)
            self.calls.remove(open_call)
            self.given_up.append(open_call)

    def cast(self) -> None:
        self.seq_cast += 1
        text = f"{self.name}.{self.core.link_number}.{self.seq_cast}"
        try:
            self.core.cast(Cast("echo.note", 1, 0, "-", text.encode()))
        except LinkDown:
            return
        self.cast_queued.add(text)


class World:
    """The listener, its agents and the network."""

    def __init__(self, seed: int, agents: int = 3) -> None:
        self.chance = random.Random(seed)
        self.now = 100.0
        self.calm = False
        self.listener_life = 0
        self.cancelled = 0  # calls that their server found cancelled
        self.log: list[bytes] = []  # of the stream, on disk
        self.states: dict[str, int] = {}  # the version of each key, on disk
        self.casts: dict[str, int] = {}  # how often each arrived
        self._publish_stream()
        self.sessions: dict[str, LinkCore] = {}
        self.wires: dict[str, tuple[Wire, Wire]] = {}  # to the listener, to the dialler
        self.half_open_since: dict[str, float] = {}
        self.committed: dict[str, dict[str, list[int]]] = {}  # agent, key: seqs in the order in which they took effect
        self.arrived: dict[tuple[str, str], list[int]] = {}  # agent and key: seqs as they came first
        self.unanswered: list[tuple[LinkCore, Call, Any]] = []
        self.begun: dict[str, int] = {}  # how often each call was begun, by its text
        self.once: set[str] = set()  # the calls that may be begun once only
        self.undecided: list[tuple[str, Report]] = []
        self.agents = [Agent(self, f"a{n}") for n in range(agents)]

    # What the listener's application does

    def append(self) -> None:
        """One more event of the stream."""
        self.log.append(str(len(self.log)).encode())
        self.stream.append(self.log[-1])

    def change_state(self, key: str) -> None:
        """A new version, told to all that are up."""
        self.states[key] = self.states.get(key, 0) + 1
        for session in self.sessions.values():
            assert session.event(Event("state", key, self.states[key], b"x"))

    def _publish_stream(self) -> None:
        """The newest events of the log, as after a start."""
        kept = self.log[-STREAM_EVENTS // 2 :]
        self.streams = Streams(LIMITS)
        first = len(self.log) - len(kept)
        self.stream = self.streams.publish(STREAM, "", first, STREAM_EVENTS, 100_000, frozenset({"conductor"}))
        for payload in kept:
            self.stream.append(payload)

    # Faults

    def cut(self, agent: Agent) -> None:
        """The connection ends; both sides see it at once."""
        self.wires.pop(agent.name, None)
        self.half_open_since.pop(agent.name, None)
        agent.connected = False
        self._happen_at_agent(agent, agent.core.lost("cut", self.now))
        if agent.core.state is State.HELLO_SENT:
            agent.core.state = State.DOWN
        session = self.sessions.get(agent.name)
        if session is not None:
            self._happen_here(agent, session.lost("cut", self.now))

    def keep_away(self, agent: Agent) -> None:
        """The connection ends, and none can be made for a while."""
        self.cut(agent)
        agent.hello_due = self.now + AWAY_S

    def half_open(self, agent: Agent, direction: int) -> None:
        """One direction swallows what is put in, until the heartbeat cuts the connection."""
        if agent.name in self.wires:
            self.wires[agent.name][direction].dead = True
            self.half_open_since.setdefault(agent.name, self.now)

    def lose_frame(self, agent: Agent, direction: int) -> None:
        """The next frame of a direction is lost."""
        if agent.name in self.wires and agent.core.state is State.UP:
            self.wires[agent.name][direction].lose_next = True

    def restart(self, agent: Agent) -> None:
        """kill -9 and a new process."""
        self.cut(agent)
        agent.begin()

    def restart_listener(self) -> None:
        """kill -9 and a new process: what was not committed, and every session, is gone."""
        for agent in self.agents:
            self.cut(agent)
        self.sessions.clear()
        self.unanswered.clear()
        self.undecided.clear()
        self.listener_life += 1
        self._publish_stream()

    # Time

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.step()

    def step(self) -> None:
        self.now += STEP_S
        for name, since in list(self.half_open_since.items()):
            if self.now - since >= HEARTBEAT_S:
                self.cut(next(agent for agent in self.agents if agent.name == name))
        self._decide()
        for agent in self.agents:
            self._connect(agent)
            self._offer(agent)
            self._carry(agent)
            self._happen_at_agent(agent, agent.core.tick(self.now))
            session = self.sessions.get(agent.name)
            if session is not None:
                self._happen_here(agent, session.tick(self.now))
            self._handle_stream(agent)

    def _connect(self, agent: Agent) -> None:
        core = agent.core
        if core.state is State.HELLO_SENT and self.now - core.hello_at > 1.0:
            core.state = State.DOWN
        if core.state is not State.DOWN or self.now < agent.hello_due:
            return
        agent.hello_due = self.now + 0.1
        if agent.name not in self.wires:
            self.wires[agent.name] = (Wire(self.chance), Wire(self.chance))
        hello = greeting(Hello, agent.name, f"life{agent.life}")
        self.wires[agent.name][0].put(core.begin_hello(hello, self.now), self.now)

    def _offer(self, agent: Agent) -> None:
        """Report what is owed, and again what was not answered for long."""
        late = self.now - ANSWER_S
        waiting = [report for name, report in agent.outbox.items() if agent.offered_at.get(name, 0.0) < late]
        for report in waiting[: agent.core.report(waiting)]:
            agent.offered_at[report.key, report.seq] = self.now

    def _carry(self, agent: Agent) -> None:
        wires = self.wires.get(agent.name)
        if wires is None:
            return
        session = self.sessions.get(agent.name)
        for core, wire in ((agent.core, wires[0]), (session, wires[1])):
            while core is not None and core.state is State.UP and (frame := core.take_frame(self.now)) is not None:
                wire.put(frame, self.now)
        while self.wires.get(agent.name) is wires and (frame := wires[0].take(self.now)) is not None:
            session = self.sessions.setdefault(
                agent.name, LinkCore(LIMITS, interfaces=lambda: RANGES, streams=self.streams)
            )
            self._happen_here(agent, session.receive(frame, self.now))
        while self.wires.get(agent.name) is wires and (frame := wires[1].take(self.now)) is not None:
            self._happen_at_agent(agent, agent.core.receive(frame, self.now))

    # What happens

    def _happen_at_agent(self, agent: Agent, happenings: list[Happening]) -> None:
        for happening in happenings:
            if isinstance(happening, AcksArrived):
                for ack in happening.acks:
                    agent.outbox.pop((ack.key, ack.seq), None)
            elif isinstance(happening, OpenCall):
                agent.settled.append(happening)
            elif isinstance(happening, StreamEvents | StreamSkip):
                agent.waiting.append(happening)
            elif isinstance(happening, Event):
                known = agent.states.get(happening.key, 0)
                assert happening.version >= known, (agent.name, happening, known)
                agent.states[happening.key] = happening.version
            elif isinstance(happening, LinkUp) and not happening.same_incarnation:
                agent.offered_at.clear()  # what is owed is owed to the new process

    def _happen_here(self, agent: Agent, happenings: list[Happening]) -> None:
        session = self.sessions.get(agent.name)
        for happening in happenings:
            if isinstance(happening, Hello):
                self._admit(agent, happening)
            elif session is None:
                continue
            elif isinstance(happening, ReportsArrived):
                self._arrive(agent, happening.reports)
            elif isinstance(happening, Call):
                serving = session.serving.get(happening.call_id)
                if serving is None:  # its cancel came in the same frame
                    continue
                text = happening.payload.decode()
                self.begun[text] = self.begun.get(text, 0) + 1
                self.unanswered.append((session, happening, serving))
            elif isinstance(happening, Cast):
                text = happening.payload.decode()
                self.casts[text] = self.casts.get(text, 0) + 1
                link_number = int(text.split(".")[1])
                assert link_number == session.link_number, f"cast {text} waited through the loss of its link"
            elif isinstance(happening, LinkUp) and not happening.same_incarnation:
                self.undecided = [item for item in self.undecided if item[0] != agent.name]

    def _arrive(self, agent: Agent, reports: list[Report]) -> None:
        """What is new comes in the order in which it was reported; only repeats may be older."""
        for report in reports:
            seen = self.arrived.setdefault((agent.name, report.key), [])
            if report.seq not in seen:
                assert not seen or report.seq > seen[-1], (agent.name, report, seen[-1])
                seen.append(report.seq)
            self.undecided.append((agent.name, report))

    def _admit(self, agent: Agent, hello: Hello) -> None:
        session = self.sessions[agent.name]
        if session.peer is not None and session.peer.incarnation != hello.incarnation:
            self._happen_here(agent, session.close("another incarnation", self.now))
            assert not session.serving, (agent.name, "served a process that is gone")
            session = self.sessions[agent.name] = LinkCore(LIMITS, interfaces=lambda: RANGES, streams=self.streams)
        elif session.peer is not None and hello.link_number <= session.link_number:
            return
        welcome = greeting(Welcome, "l", f"l{self.listener_life}")
        self._happen_here(agent, session.accept(hello, peer_of(hello, "", LIMITS), welcome, self.now))
        for key, version in self.states.items():  # a snapshot at each link up
            assert session.event(Event("state", key, version, b"x"))

    def _decide(self) -> None:
        """Commit some reports, in their order per key, and ack them in any; answer some calls."""
        share = 1.0 if self.calm else 0.3
        acks: dict[str, list[Ack]] = {}
        held: set[tuple[str, str]] = set()
        kept = []
        for name, report in self.undecided:
            if (name, report.key) in held or self.chance.random() > share:
                held.add((name, report.key))
                kept.append((name, report))
                continue
            done = self.committed.setdefault(name, {}).setdefault(report.key, [])
            if not done or report.seq > done[-1]:
                done.append(report.seq)
            acks.setdefault(name, []).append(Ack(report.key, report.seq, "applied"))
        self.undecided = kept
        for name, some in acks.items():
            self.chance.shuffle(some)
            self.sessions[name].ack(some)
        for item in list(self.unanswered):
            if self.calm or self.chance.random() < ANSWER_SHARE:
                self.unanswered.remove(item)
                session, call, serving = item
                if session.serving.get(call.call_id) is not serving:
                    self._check_cancelled(call)
                session.answer(Reply(call.call_id, call.payload), 1, serving)

    def _check_cancelled(self, call: Call) -> None:
        """Who asked must not wait for it any more: gave it up, has an outcome, or is another process by now."""
        self.cancelled += 1
        for agent in self.agents:
            for open_call in agent.core.calls.values():
                assert open_call.call.payload != call.payload or open_call.deadline <= self.now, call

    def _handle_stream(self, agent: Agent) -> None:
        while agent.waiting and (self.calm or self.chance.random() < 0.5):
            news = agent.waiting.popleft()
            agent.told.append(news)
            agent.cursor = news.end
            agent.core.stream_handled(STREAM, "", news.end, self.now)

    # What must hold

    def settle(self) -> None:
        """No more faults: let everything come to rest, and check it.

        Links that are up stay up: what was lost on them must come by itself, not by a reconnect.
        """
        self.calm = True
        for wires in self.wires.values():
            for wire in wires:
                wire.lose_next = False
        self.run(20)
        self.check()
        for agent in self.agents:
            assert agent.core.state is State.UP, agent.name
            assert not agent.outbox, (agent.name, list(agent.outbox))
            assert not agent.core.calls, agent.name
            assert agent.cursor == self.stream.next, (agent.name, agent.cursor, self.stream.next)
            assert all(open_call.outcome is not None for open_call in agent.calls)
            lost = self._lost_states(agent)
            for key, version in self.states.items():
                assert agent.states.get(key) == version or version in lost.get(key, ()), (agent.name, key, version)
            assert not self.sessions[agent.name].serving, agent.name
            self._check_casts_arrive(agent)
        assert not self.unanswered

    def _lost_states(self, agent: Agent) -> dict[str, set[int]]:
        """Versions that a lost frame of the connection took away, by key."""
        lost: dict[str, set[int]] = {}
        for frame in self.wires[agent.name][1].lost:
            for envelope in decode_frame(frame, LIMITS):
                if isinstance(envelope, Event):
                    lost.setdefault(envelope.key, set()).add(envelope.version)
        return lost

    def _check_casts_arrive(self, agent: Agent) -> None:
        """On a link that stays up and loses nothing, every cast arrives."""
        before = set(agent.cast_queued)
        for _ in range(10):
            agent.cast()
        self.run(1)
        assert len(agent.cast_queued - before) == 10
        assert all(self.casts.get(text) == 1 for text in agent.cast_queued - before)

    def _check_cancelled_in_time(self, agent: Agent, session: LinkCore) -> None:
        """What nobody waits for is not served for long: its caller gave it up, or its link stays away."""
        if session.state is State.DOWN:
            grace_s = (LIMITS.call_grace_ms + LIMITS.silence_ms_max) / 1000 + 2 * STEP_S
            assert not session.serving or self.now - session.lost_at < grace_s, (agent.name, session.serving)
        due = self.now - CANCEL_S_MAX
        arrived = {text for text, at, wire in agent.cancels if at < due and not wire.lost and not wire.dead}
        connection = self.wires.get(agent.name)
        agent.cancels = [
            (text, at, wire) for text, at, wire in agent.cancels if connection is not None and wire is connection[0]
        ]
        arrived &= {text for text, _, _ in agent.cancels}
        for served_by, call, serving in self.unanswered:
            if served_by is session and session.serving.get(call.call_id) is serving:
                assert call.payload.decode() not in arrived, (agent.name, call, "was given up and is served")

    def check(self) -> None:
        """What holds at any time."""
        for agent in self.agents:
            for key, seqs in self.committed.get(agent.name, {}).items():
                assert seqs == sorted(set(seqs)), (agent.name, key, seqs)
            expected = 0
            for news in agent.told:
                first = news.cursor if isinstance(news, StreamEvents) else news.first
                assert first == expected, (agent.name, first, expected)
                expected = news.end
                if isinstance(news, StreamEvents):
                    assert news.payloads == [str(n).encode() for n in range(first, news.end)]
            assert all(open_call.outcome is None for open_call in agent.given_up)
            assert not {id(open_call) for open_call in agent.given_up} & {id(done) for done in agent.settled}
            session = self.sessions.get(agent.name)
            if session is not None:
                assert session.reports_in.over_credit == 0
                self._check_cancelled_in_time(agent, session)
        for open_call in (open_call for agent in self.agents for open_call in agent.settled):
            if isinstance(open_call.outcome, Reply):
                assert open_call.outcome.payload == open_call.call.payload
        assert all(times == 1 for text, times in self.begun.items() if text in self.once), self.begun
        queued = set().union(*(agent.cast_queued for agent in self.agents))
        assert all(times == 1 and text in queued for text, times in self.casts.items()), self.casts
