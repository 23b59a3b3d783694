"""A process full of agents for loadtest.fanin: DEALERs with CURVE, one acknowledged report a second each.

    python -m loadtest.fanin_agents < ORDER        (JSON; answers in JSON lines: "up", then the outcome)

Each agent speaks the bus' protocol by the bus' own core (hello, numbered reports, durable acks); only its socket is
driven by one epoll loop for all, since thousands of endpoints in one process would measure the agents.
"""

import json
import select
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass

import zmq

from zcompute.bus import Identity, Limits, Report
from zcompute.bus.envelope import Hello, encode_attributes
from zcompute.bus.happenings import AcksArrived, HelloRefused, LinkLost, LinkUp
from zcompute.bus.protocol import LinkCore, State
from zcompute.bus.sockets import open_dealer, readable

PAYLOAD_BYTES = 300
CONNECTING_MAX = 100
HELLO_AGAIN_S = Limits().hello_timeout_ms / 1000
DRAIN_S = 30.0
POLL_S_MAX = 0.05
IO_THREADS = 4
ASKS_A_ROUND = 20
SAID_KEPT = 4
LATE_READ_S = 0.02


@dataclass(frozen=True)
class Work:
    """Which agents, where to, for how long."""

    first: int
    keys: list[list[str]]
    address: str
    server_public: str
    warm_up_s: float
    seconds: float


@dataclass
class Outcome:
    """Reports never acknowledged, links lost, and how long each ack of the measured time took.

    `late_ms_max`: how late a report was sent, for want of a processor. `silences_ms`: for each link that was lost, how
    long its agent, by its own clock, had said nothing at most, just before.
    """

    unacked: int
    links_lost: int
    late_ms_max: float
    silences_ms: list[float]
    taken_ms: list[float]


class Agent:
    """One link, one report a second."""

    def __init__(self, number: int, keys: list[str], work: Work, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        limits = Limits()
        self.number = number
        self._identity = Identity("compute", "c1", f"agent{number}", "1", frozenset(), keys[0], keys[1])
        self.core = LinkCore(limits)
        self._socket = open_dealer(context, self._identity, limits, work.server_public)
        self._socket.connect(work.address)
        self.descriptor = int(self._socket.getsockopt(zmq.FD))
        self.hello_at = 0.0
        self._said_at: deque[float] = deque([0.0], SAID_KEPT)
        self._silence_s_max = limits.heartbeat_interval_ms / 1000
        self.silences_ms: list[float] = []
        self.seq = 0
        self.sent_at: dict[int, float] = {}

    @property
    def up(self) -> bool:
        """Welcomed."""
        return self.core.state is State.UP

    def say_hello(self, now: float) -> None:
        """Say hello when the connection takes it; again when nobody answered."""
        if now - self.hello_at < HELLO_AGAIN_S or self.up or not self._writable():
            return
        self.hello_at = now
        self.core.state = State.DOWN
        attributes = encode_attributes({}, Limits())
        identity = self._identity
        hello = Hello(
            1, 0, 0, identity.service_id, f"{self.number:032x}", "compute", "c1", "1", [], {}, [], attributes, 1000
        )
        self._send(self.core.begin_hello(hello, now))

    def _writable(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def _send(self, frame: bytes | None) -> None:
        if frame is not None:
            self._said_at.append(time.monotonic())
            try:
                self._socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                self.core.lost("blocked", time.monotonic())

    def ask(self, now: float) -> list[float]:
        """Let the listener hear something, as a dialler that has nothing to say does; as `read`."""
        if not self.up or now - self._said_at[-1] < self._silence_s_max:
            return []
        self.core.probe()
        self._send(self.core.take_frame(now))
        return self.read(now)  # the edge may have been consumed by the send

    def report(self, now: float) -> None:
        """Send the next report; a link that was lost says hello first, and its reports are sent again by the core."""
        self.say_hello(now)
        self.seq += 1
        if self.core.report([Report(f"instance-{self.number}", self.seq, b"x" * PAYLOAD_BYTES)]):
            self.sent_at[self.seq] = now
            self._send(self.core.take_frame(now))

    def read(self, now: float) -> list[float]:
        """Take what arrived; the seconds that each ack took."""
        taken: list[float] = []
        while readable(self._socket):
            for happening in self.core.receive(self._socket.recv(zmq.NOBLOCK), now):
                if isinstance(happening, AcksArrived):
                    taken += [now - self.sent_at.pop(ack.seq) for ack in happening.acks if ack.seq in self.sent_at]
                elif isinstance(happening, HelloRefused):
                    raise RuntimeError(f"agent {self.number}: {happening.error}")
                elif isinstance(happening, LinkUp):
                    self._send(self.core.take_frame(now))
                elif isinstance(happening, LinkLost):
                    self._note_lost(now)
        return taken

    def _note_lost(self, now: float) -> None:
        said = [at for at in self._said_at if at]
        pauses = [later - earlier for earlier, later in zip(said, [*said[1:], now], strict=True)]
        self.silences_ms.append(round(1000 * max(pauses, default=0.0), 1))
        self.hello_at = 0.0
        self.say_hello(now)


class Agents:
    """All agents of the process, and their loop."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=IO_THREADS)
        self._context.set(zmq.MAX_SOCKETS, len(work.keys) + 64)
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Agent] = {}

    def connect(self, deadline_s: float) -> None:
        """Bring all up, a few at a time. Raises RuntimeError when they are not within the time."""
        deadline = time.monotonic() + deadline_s
        waiting = list(enumerate(self._work.keys))
        while waiting or not all(agent.up for agent in self._by_descriptor.values()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{sum(agent.up for agent in self._by_descriptor.values())} agents are up, not all")
            room = max(0, CONNECTING_MAX - sum(not agent.up for agent in self._by_descriptor.values()))
            for index, keys in waiting[:room]:
                agent = Agent(self._work.first + index, keys, self._work, self._context)
                self._by_descriptor[agent.descriptor] = agent
                self._epoll.register(agent.descriptor, select.EPOLLIN | select.EPOLLET)
            del waiting[:room]
            self._turn(0.02)
            now = time.monotonic()
            for agent in self._by_descriptor.values():
                if not agent.up:
                    agent.say_hello(now)
                    agent.read(now)  # the edge may have been consumed by the send
            self._ask()

    def _ask(self) -> list[float]:
        now = time.monotonic()
        return [took for agent in self._by_descriptor.values() for took in agent.ask(now)]

    def wait(self, go: int) -> None:
        """Until the word comes."""
        self._epoll.register(go, select.EPOLLIN)
        while True:
            ready = self._epoll.poll(POLL_S_MAX)
            for descriptor, _ in ready:
                if descriptor != go:
                    self._by_descriptor[descriptor].read(time.monotonic())
            self._ask()
            if any(descriptor == go for descriptor, _ in ready):
                self._epoll.unregister(go)
                return

    def _turn(self, wait_s: float) -> list[float]:
        taken: list[float] = []
        for descriptor, _ in self._epoll.poll(wait_s):
            taken += self._by_descriptor[descriptor].read(time.monotonic())
        return taken

    def run(self) -> Outcome:
        """Report once a second each, spread over the second; count what falls into the measured time."""
        agents = list(self._by_descriptor.values())
        began = time.monotonic()
        measured_from = began + self._work.warm_up_s
        end = measured_from + self._work.seconds
        outcome = Outcome(0, 0, 0.0, [], [])
        turn = asked_turn = 0
        read_at = began
        while time.monotonic() < end + DRAIN_S:
            second, index = divmod(turn, len(agents))
            due = began + second + index / len(agents)
            now = time.monotonic()
            if turn - asked_turn > len(agents) // ASKS_A_ROUND:
                asked_turn = turn
                taken = self._ask()
            elif now - read_at > LATE_READ_S:  # however late the reports are, what came is read
                taken = self._turn(0)
                read_at = now
            elif due < end:
                if now >= due:
                    outcome.late_ms_max = max(outcome.late_ms_max, 1000 * (now - due))
                    agents[index].report(now)
                    taken = agents[index].read(now)  # the edge may have been consumed by the send
                    turn += 1
                else:
                    taken = self._turn(min(POLL_S_MAX, due - now))
            elif any(agent.sent_at for agent in agents):
                taken = self._turn(POLL_S_MAX)
            else:
                break
            if now >= measured_from:
                outcome.taken_ms += [1000 * one for one in taken]
        outcome.unacked = sum(len(agent.sent_at) for agent in agents)
        outcome.silences_ms = [silence for agent in agents for silence in agent.silences_ms]
        outcome.links_lost = len(outcome.silences_ms)
        return outcome


def main() -> None:
    """Read the order, connect, wait for the word, run, tell."""
    work = Work(**json.loads(sys.stdin.readline()))
    agents = Agents(work)
    agents.connect(120)
    print("up", flush=True)
    agents.wait(sys.stdin.fileno())
    sys.stdin.readline()
    print(json.dumps(asdict(agents.run())), flush=True)
    agents.wait(sys.stdin.fileno())  # until all have ended, nobody falls silent


if __name__ == "__main__":
    main()
