"""A process full of simulated agents: each with its own key, host, epoch and links, without a journal on disk.

    python -m loadtest.ledger.agents < ORDERS        (loadtest.ledger.orders: a line in, a line out)

At most one frame of reports is in flight on a link, as the real agent's dispatch has it. An instance is never reported
again before its last report has its verdict, but for popular instances (``zipf``), where the conductor coalesces.
"""

import gc
import itertools
import random
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import zmq

from loadtest.ledger.agent_link import AgentLink, Sent
from loadtest.ledger.orders import Begin, Closed, Connect, Dump, Outcome, Paced, to_line, to_order
from loadtest.ledger.world import CELL, PROGRESS_MAX, TRANSITION_EVERY, host_name, other_power, uuid_of
from zcompute.bus import Ack, Identity, Report
from zcompute.objects.instance import POWER_RUNNING
from zcompute.objects.partition import partition_of
from zcompute.objects.report import (
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    VERDICT_BUSY,
    VERDICT_INVALID,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    Observation,
)

CONNECTING_MAX = 100
UP_S_MAX = 60.0
DRAIN_S_MAX = 15.0
SWEEP_S_MAX = 150.0
PUT_OFF_S = 0.05
BEAT_S = 2.0
TICK_S = 0.25
POLL_S_MAX = 0.02
IO_THREADS = 2
ZIPF_EXPONENT = 1.1
DONE = frozenset({VERDICT_APPLIED, VERDICT_ALREADY_THERE})
PUT_OFF = frozenset({VERDICT_BUSY, VERDICT_NOT_OWNER, VERDICT_NOT_YET})

GARBAGE_THRESHOLDS = (50_000, 50, 50)  # a thousand agents in one process are not what is measured

_encode = msgspec.msgpack.Encoder().encode


class Instance:
    """An instance as its agent knows it."""

    __slots__ = ("epoch", "number", "power_state", "progress", "seq", "uuid")

    def __init__(self, number: int) -> None:
        self.number = number
        self.uuid = uuid_of(number)
        self.power_state = POWER_RUNNING
        self.progress = 0
        self.epoch = 0
        self.seq = 0


class Agent:
    """A host and its instances, by the conductor that owns them."""

    def __init__(self, number: int, keys: tuple[str, str], instances: range) -> None:
        self.number = number
        self.host = host_name(number)
        self.identity = Identity("compute", CELL, f"agent-{number}", "1", frozenset([self.host]), keys[0], keys[1])
        self.instances = [Instance(n) for n in instances]
        self.links: list[AgentLink] = []
        self.epoch = 0
        self._seq = 0
        self._updates = number  # not all agents' fifth updates fall together
        self._at = 0
        self._by_link: dict[AgentLink, tuple[list[Instance], Iterator[Instance]]] = {}

    def linked(self, links: list[AgentLink], owners: list[str]) -> None:
        """Which link is each instance's now."""
        self.links = links
        self._by_link = {}
        for link in links:
            mine = [i for i in self.instances if owners[partition_of(i.uuid)] == link.place.service_id]
            self._by_link[link] = (mine, itertools.cycle(mine))

    def begin_again(self) -> None:
        """Another begin of the host came behind the one whose epoch is known: take a third."""
        self.epoch = 0
        for link in self.links:
            link.attached = link.superseded = False
            link.epoch = 0

    def next_link(self) -> AgentLink:
        """The links in turn, those without an instance left out."""
        while True:
            self._at = (self._at + 1) % len(self.links)
            link = self.links[self._at]
            if self._by_link[link][0]:
                return link

    def draw(self, link: AgentLink, count: int, zipf: bool) -> list[Instance]:
        """Instances to update next: the longest unchanged ones, or popular ones."""
        mine, cycle = self._by_link[link]
        if zipf:
            return random.choices(mine, cum_weights=zipf_weights(len(mine)), k=count)
        return [next(cycle) for _ in range(min(count, len(mine)))]

    def update(self, instance: Instance, due: float) -> tuple[Sent, bool]:
        """Change it; the report, and whether it is a transition."""
        self._updates += 1
        self._seq += 1
        transition = self._updates % TRANSITION_EVERY == 0
        if transition:
            instance.power_state = other_power(instance.power_state)
        else:
            instance.progress = (instance.progress + 1) % PROGRESS_MAX
        instance.epoch, instance.seq = self.epoch, self._seq
        body = Observation(
            instance_uuid=instance.uuid,
            host=self.host,
            generation=1,
            power_state=instance.power_state,
            progress=instance.progress,
        )
        return Sent(instance.number, due, Report(instance.uuid, self._seq, _encode(body))), transition


_weights: dict[int, list[float]] = {}


def zipf_weights(count: int) -> list[float]:
    """Cumulative weights of so many ranks."""
    if count not in _weights:
        _weights[count] = list(itertools.accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, count + 1)))
    return _weights[count]


class Agents:
    """All agents of the process, and their loop."""

    def __init__(self, begin: Begin) -> None:
        self._agents = [
            Agent(begin.first + index, keys, range(begin.first + index, begin.instances, begin.agents))
            for index, keys in enumerate(begin.keys)
        ]
        self._first = begin.first
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=IO_THREADS)
        self._context.set(zmq.MAX_SOCKETS, 8 * len(self._agents) + 64)
        self._epoll = select.epoll()
        self._links: dict[int, AgentLink] = {}
        self._ticked_at = 0.0
        self._beaten = 0
        self.outcome = Outcome()
        self._measured_from = self._ends_at = 0.0
        self._order: Closed | Paced | None = None
        self._left = 0  # of a sweep

    # -- connecting -------------------------------------------------------------------------------------------------

    def connect(self, order: Connect) -> None:
        """Link all agents, begin their hosts, attach them. Raises RuntimeError when that takes too long."""
        deadline = time.monotonic() + UP_S_MAX
        self._disconnect()
        waiting = list(self._agents)
        began: set[int] = set()
        while waiting or not all(link.attached for link in self._links.values()):
            now = time.monotonic()
            if now > deadline:
                attached = sum(link.attached for link in self._links.values())
                raise RuntimeError(f"{attached} of {len(self._links)} links are attached after {UP_S_MAX:g} s")
            room = CONNECTING_MAX - sum(not link.attached for link in self._links.values())
            for agent in waiting[: max(0, room)]:
                self._open(agent, order)
            del waiting[: max(0, room)]
            for link in self._links.values():
                if not link.attached:
                    self._advance(link, order, began, now)
            self._turn(POLL_S_MAX)

    def _disconnect(self) -> None:
        for link in self._links.values():
            self._epoll.unregister(link.descriptor)
            link.close()
        self._links.clear()

    def _open(self, agent: Agent, order: Connect) -> None:
        links = [AgentLink(agent.number, agent.host, agent.identity, place, self._context) for place in order.places]
        for link in links:
            self._links[link.descriptor] = link
            self._epoll.register(link.descriptor, select.EPOLLIN | select.EPOLLET)
        agent.epoch = 0
        agent.linked(links, order.owners)

    def _advance(self, link: AgentLink, order: Connect, began: set[int], now: float) -> None:
        """The next step of an agent's greeting: hello, the host's epoch from its owner, attached everywhere."""
        agent = self._agents[link.agent - self._first]
        if link.superseded:
            agent.begin_again()
        if not link.up:
            link.say_hello(now)
        elif link.asked:
            return
        elif link.epoch:
            agent.epoch, link.epoch = link.epoch, 0
        elif agent.epoch:
            link.attach(agent.epoch, now)
        elif link.place.service_id == order.owners[partition_of(link.host)]:
            link.begin_host(now)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _turn(self, wait_s: float) -> None:
        for descriptor, _ in self._epoll.poll(wait_s):
            self._read(self._links[descriptor])
        now = time.monotonic()
        if now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            self._tick(now)

    def _tick(self, now: float) -> None:
        """What a real agent's timers do: beats, a word to the silent, reports that were put off."""
        links = list(self._links.values())
        beaten = int(now / BEAT_S * len(links)) if links else 0
        for at in range(max(self._beaten, beaten - len(links)), beaten):
            link = links[at % len(links)]
            if link.attached:
                link.beat(now)
        self._beaten = beaten
        for link in links:
            if link.up:
                link.ask(now)
                link.tick(now)
                self._read(link)
            if not link.attached:
                self._greet_again(link, now)
            due = [sent for at, sent in link.again if at <= now] if link.attached else []
            if due:
                link.again = [(at, sent) for at, sent in link.again if at > now]
                link.report(due, now)

    def _greet_again(self, link: AgentLink, now: float) -> None:
        """A link that was lost: hello, then attach; while agents are being connected, _advance does it."""
        agent = self._agents[link.agent - self._first]
        if not link.up:
            link.say_hello(now)
        elif agent.epoch and not link.asked:
            link.attach(agent.epoch, now)

    def _read(self, link: AgentLink) -> None:
        now = time.monotonic()
        acks = link.read(now)
        if acks:
            for ack in acks:
                self._take(link, ack, now)
            if not link.sent:
                self._next(link, now)

    def _take(self, link: AgentLink, ack: Ack, now: float) -> None:
        sent = link.sent.pop(ack.seq, None)
        outcome = self.outcome
        if sent is None:
            return
        if ack.verdict in DONE:
            outcome.applied += 1
            if self._measured_from <= now < self._ends_at:
                outcome.measured += 1
                outcome.taken_ms.append(round(1000 * (now - sent.due), 3))
        elif ack.verdict in PUT_OFF or (ack.verdict == VERDICT_INVALID and not link.attached):
            outcome.put_off += 1
            link.again.append((now + PUT_OFF_S, sent))
        else:
            outcome.refused += 1
            outcome.said = outcome.said or f"{ack.verdict}: {ack.detail}"

    def _next(self, link: AgentLink, now: float) -> None:
        """The frame on this link is answered: the next."""
        order = self._order
        agent = self._agents[link.agent - self._first]
        if isinstance(order, Closed):
            if link.again or (self._left <= 0 if order.sweep else now >= self._ends_at):
                return
            self._left -= order.window
            link = agent.next_link()
            instances = agent.draw(link, order.window, order.zipf)
            self._report(agent, link, [(instance, now) for instance in instances], now)
        elif link.waiting:
            numbers, link.waiting = link.waiting, []
            self._report_due(agent, link, numbers, now)

    def _report(self, agent: Agent, link: AgentLink, due: list[tuple[Instance, float]], now: float) -> None:
        updates = []
        for instance, at in due:
            sent, transition = agent.update(instance, at)
            self.outcome.transitions += transition
            updates.append(sent)
        link.report(updates, now)

    # -- orders -----------------------------------------------------------------------------------------------------

    def closed(self, order: Closed) -> Outcome:
        """Keep the window full until the end; then wait for what is left."""
        self._begin(order)
        began = time.monotonic()
        self._left = sum(len(agent.instances) for agent in self._agents)
        for agent in self._agents:
            self._next(agent.links[0], time.monotonic())
        limit = began + SWEEP_S_MAX
        while (self._left > 0 and time.monotonic() < limit) if order.sweep else time.monotonic() < self._ends_at:
            self._turn(POLL_S_MAX)
        return self._end(began)

    def paced(self, order: Paced) -> Outcome:
        """Updates at their times, the agents in turn."""
        self._begin(order)
        began = time.monotonic()
        for turn in itertools.count():
            due = began + turn / order.per_second
            if due >= self._ends_at:
                break
            while (now := time.monotonic()) < due:
                self._turn(min(POLL_S_MAX, due - now))
            agent = self._agents[turn % len(self._agents)]
            link = agent.next_link()
            if link.sent or link.again:
                link.waiting.append(turn)
            else:
                self._report_due(agent, link, [turn], now)
                self._read(link)  # the edge may have been consumed by the send
            if turn % 16 == 0:
                self._turn(0)
        return self._end(began)

    def _report_due(self, agent: Agent, link: AgentLink, turns: list[int], now: float) -> None:
        order = self._order
        began = self._began
        if isinstance(order, Paced):
            instances = agent.draw(link, len(turns), zipf=False)
            due = [(one, began + turn / order.per_second) for one, turn in zip(instances, turns, strict=False)]
            self._report(agent, link, due, now)

    def _begin(self, order: Closed | Paced) -> None:
        self.outcome = Outcome()
        self._order = order
        self._began = time.monotonic()
        self._measured_from, self._ends_at = order.measured_from, order.ends_at

    def _end(self, began: float) -> Outcome:
        lasted = time.monotonic() - began
        deadline = time.monotonic() + DRAIN_S_MAX
        while self._open_reports() and time.monotonic() < deadline:
            self._turn(POLL_S_MAX)
        self._order = None
        self.outcome.unacked = self._open_reports()
        if self.outcome.unacked:
            self.outcome.said = "; ".join(link.state() for link in self._links.values() if link.open_reports())
        self.outcome.lasted_s = lasted
        self.outcome.links_lost = sum(link.lost_times for link in self._links.values())
        return self.outcome

    def _open_reports(self) -> int:
        return sum(link.open_reports() for link in self._links.values())

    def dump(self, path: str) -> None:
        """What the database must say of every instance that was ever updated."""
        rows = [
            (one.number, one.epoch, one.seq, one.power_state, one.progress)
            for agent in self._agents
            for one in agent.instances
            if one.seq
        ]
        Path(path).write_bytes(_encode(rows))

    def wait(self, descriptor: int) -> None:
        """Until the next order, keeping the links alive."""
        orders = select.poll()
        orders.register(descriptor, select.POLLIN)
        while not orders.poll(0):
            self._turn(POLL_S_MAX)


def main() -> None:
    """Carry out orders until the input ends."""
    begin = to_order(sys.stdin.readline())
    if not isinstance(begin, Begin):
        raise SystemExit(f"expected the order begin first, found {begin}")
    agents = Agents(begin)
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    print(to_line(Outcome()), flush=True)
    while True:
        agents.wait(sys.stdin.fileno())
        line = sys.stdin.readline()
        if not line:
            return
        order = to_order(line)
        outcome = Outcome()
        if isinstance(order, Connect):
            agents.connect(order)
        elif isinstance(order, Closed):
            outcome = agents.closed(order)
        elif isinstance(order, Paced):
            outcome = agents.paced(order)
        elif isinstance(order, Dump):
            agents.dump(order.path)
        print(to_line(outcome), flush=True)


if __name__ == "__main__":
    main()
