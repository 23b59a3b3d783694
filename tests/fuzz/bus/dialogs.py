"""Whole dialogs between two link cores, with mutated, lost, repeated and late frames in between.

Whatever arrives: no exception, every queue within its limit, what is sent can be read, and every call ends.
"""

import random
from collections import Counter, deque

from tests.fuzz.bus import seeds
from tests.fuzz.bus.decoder import FindingError
from tests.fuzz.bus.mutate import Mutator
from zcompute.bus.envelope import Ack, Call, Cast, Event, Hello, Reply, Report, decode_frame
from zcompute.bus.errors import BusError
from zcompute.bus.happenings import AcksArrived, Happening, OpenCall, Refused, ReportsArrived, StreamEvents
from zcompute.bus.limits import Limits
from zcompute.bus.protocol import LinkCore, State, peer_of
from zcompute.bus.streams import Streams

STEPS = 120  # of one dialog
TICK_S = 0.025
CALL_S = 5.0
SERVED_KEPT_MAX = 20
LIMITS = Limits(
    report_credit=50, unacked_reports_max=200, open_calls_max=40, serving_calls_max=30, queue_envelopes_max=200,
    queue_control_max=200, state_events_max=50, batch_envelopes=8, report_batch=8, lane_keys_max=3,
)  # fmt: skip


class Side:
    """One core and a small application above it."""

    def __init__(self, chance: random.Random, dials: bool) -> None:
        streams = Streams(LIMITS)
        self.core = LinkCore(LIMITS, streams=streams)
        self._stream = streams.publish("t", "k", 0, 20, None, frozenset({"compute"}))
        self.dials = dials
        self.calls: list[OpenCall] = []
        self.refused: Counter[str] = Counter()
        self._chance = chance
        self._served: deque[tuple[Call, object]] = deque(maxlen=SERVED_KEPT_MAX)
        self._reports = 0
        self._version = 0

    def connect(self, now: float) -> list[bytes]:
        """The hello of a dialler that is not up."""
        if self.dials and self.core.state is State.DOWN:
            return [self.core.begin_hello(seeds.hello(), now)]
        return []

    def receive(self, frame: bytes, now: float) -> None:
        """Take a frame, as a link does."""
        self.happen(self.core.receive(frame, now), now)

    def happen(self, happenings: list[Happening], now: float) -> None:
        """What a link and its application do about it."""
        core = self.core
        for happening in happenings:
            if isinstance(happening, Hello):
                self._admit(happening, now)
            elif isinstance(happening, Refused):
                self.refused[happening.reason] += 1
            elif isinstance(happening, Call):
                self._served.append((happening, core.serving.get(happening.call_id)))
            elif isinstance(happening, ReportsArrived):
                core.ack(
                    [Ack(one.key, one.seq, "applied", lane=self._chance.randrange(3)) for one in happening.reports]
                )
            elif isinstance(happening, StreamEvents):
                core.stream_handled(happening.topic, happening.key, happening.cursor + len(happening.payloads), now)
                self.refused["taken_StreamEvents"] += 1
            elif isinstance(happening, AcksArrived | Cast | Event):
                self.refused[f"taken_{type(happening).__name__}"] += 1
        if core.outgoing.control_full:
            core.lost("unread", now)

    def _admit(self, hello: Hello, now: float) -> None:
        """A listener lets in whoever says hello; its sessions take higher link numbers only."""
        if self.dials or hello.link_number <= self.core.link_number:
            self.refused["hello"] += 1
            return
        try:
            peer = peer_of(hello, "", LIMITS)
        except BusError:
            self.refused["hello"] += 1
            return
        self.happen(self.core.accept(hello, peer, seeds.welcome(), now), now)

    def act(self, now: float) -> None:
        """Something that an application may do."""
        core, chance = self.core, self._chance
        kind = chance.randrange(8)
        if core.state is not State.UP:
            return
        try:
            if kind == 0:
                call = Call(0, "echo.say", 1, 0, int(CALL_S * 1000), "-", b"\x80")
                open_call = OpenCall(call, "echo", now + CALL_S, chance.random() < 0.5)
                core.call(open_call)
                self.calls.append(open_call)
            elif kind == 1:
                core.cast(Cast("echo.note", 1, 0, "-", b"\x80"))
            elif kind == 2:
                reports = [Report(f"i{n % 5}", self._reports + n, b"x") for n in range(chance.randrange(1, 20))]
                self._reports += core.report(reports)
            elif kind == 3:
                self._version += 1
                core.event(Event("map", f"k{self._version % 7}", self._version, b"x"))
            elif kind == 4 and self.calls:
                core.give_up(chance.choice(self.calls))
            elif kind == 5:
                core.follow("t", "k", chance.randrange(10), now)
                self._stream.append(b"x")
            else:
                self._answer()
        except BusError:
            self.refused["own_limit"] += 1

    def _answer(self) -> None:
        while self._served:
            call, served = self._served.popleft()
            if served is not None:
                self.core.answer(Reply(call.call_id, b"\x80"), 1, served)  # type: ignore[arg-type]  # set: it serves

    def frames(self, now: float) -> list[bytes]:
        """What this side has to send."""
        sent = []
        while (frame := self.core.take_frame(now)) is not None and len(sent) < STEPS:
            sent.append(frame)
        return sent

    def check(self) -> None:
        """Every bound holds."""
        core = self.core
        sizes = (
            ("serving", len(core.serving), LIMITS.serving_calls_max),
            ("calls", len(core.calls), LIMITS.open_calls_max),
            ("unacked", len(core.reports_out.unacked), LIMITS.unacked_reports_max),
            ("keys whose lane is known", len(core.reports_out.lanes._lane_of), LIMITS.lane_keys_max),
            ("unacked of the peer", core.reports_in.unacked, LIMITS.report_credit),
            ("queued", core.outgoing.queued, 2 * LIMITS.queue_envelopes_max + LIMITS.queue_control_max),
        )
        for name, size, size_max in sizes:
            if size > size_max:
                raise ValueError(f"{name}: expected at most {size_max}, found {size}")
        lanes = core.reports_out.lanes
        counted = Counter(lanes.lane_of(key) for key, _ in core.reports_out.unacked) if lanes.credit else Counter()
        if counted != lanes.unacked:
            raise ValueError(f"unacked by lane: expected {counted}, found {lanes.unacked}")


class Dialog:
    """A dialler, a listener, and what a hostile network makes of their frames."""

    def __init__(self, seed: int, mutator: Mutator) -> None:
        self._chance = random.Random(seed)
        self._mutator = mutator
        self._now = 100.0
        self._late: list[bytes] = []
        self.sides = (Side(self._chance, dials=True), Side(self._chance, dials=False))
        self.mutations = 0

    def run(self) -> None:
        """Bad weather for STEPS steps, then the end of every call."""
        for _ in range(STEPS):
            self._now += TICK_S
            for side, other in (self.sides, self.sides[::-1]):
                side.act(self._now)
                for frame in side.connect(self._now) + side.frames(self._now):
                    decode_frame(frame, LIMITS)
                    for arrived in self._carried(frame):
                        other.receive(arrived, self._now)
                        other.check()
                if self._chance.random() < 0.5:
                    self.mutations += 1
                    other.receive(self._mutator.frame(), self._now)
                    other.check()
                side.happen(side.core.tick(self._now), self._now)
                if side.dials and side.core.state is State.HELLO_SENT and self._now - side.core.hello_at > 1.0:
                    side.core.state = State.DOWN  # as the dialler does when no answer comes
        self._now += CALL_S
        for side in self.sides:
            side.core.tick(self._now)
            if side.core.calls:
                raise ValueError(f"{len(side.core.calls)} calls have no outcome after their deadline")

    def _carried(self, frame: bytes) -> list[bytes]:
        kind = self._chance.random()
        if kind < 0.70:
            return [frame]
        if kind < 0.85:
            self.mutations += 1
            return [self._mutator.mutate(frame)]
        if kind < 0.90:
            return []
        if kind < 0.95:
            return [frame, frame]
        self._late.append(frame)
        return [frame, self._late.pop(0)] if len(self._late) > 5 else []


def run(mutations: int, seed: int) -> Counter[str]:
    """What the two sides refused, by reason. Raises FindingError."""
    mutator = Mutator(seed, seeds.frames())
    outcomes: Counter[str] = Counter()
    done = number = 0
    while done < mutations:
        dialog = Dialog(seed * 1_000_003 + number, mutator)
        try:
            dialog.run()
        except Exception as error:
            raise FindingError(f"dialog {number} of seed {seed}: {error!r}") from error
        done += dialog.mutations
        number += 1
        for side in dialog.sides:
            outcomes.update(side.refused)
    outcomes["dialogs"] = number
    outcomes["mutations"] = done
    return outcomes
