"""What a conductor hands on and what it refuses; what an owner believes of a fellow. Links are played by this file."""

from types import SimpleNamespace
from typing import Any

import gevent
import msgspec
import pytest

from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus import Ack, Counters, Peer, Report
from zcompute.bus.counters import Refusals
from zcompute.bus.errors import Busy, Forbidden, LinkDown, NotOwner
from zcompute.conductor.cell.hosts import Attachments
from zcompute.conductor.cell.relay import Relay
from zcompute.conductor.cell.relay_window import Handed, RelayLimits, RelayWindow
from zcompute.conductor.cell.vouching import Vouching
from zcompute.conductor.fellows import Fellows
from zcompute.db.errors import ConnectionLost
from zcompute.objects.messages.hosts import HostBeginReply, HostBeginRequest
from zcompute.objects.methods import RELAY_BEAT, RELAY_BEGIN, RELAY_FIND, RELAY_SPAWN, SPAWN
from zcompute.objects.partition import PARTITIONS, PartitionMap, partition_of
from zcompute.objects.relay import FindRequest, RelayedReport
from zcompute.objects.report import Observation

UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"


class Link:
    """A link with ``service_id``; what was sent over it is kept."""

    def __init__(self, service_id: str, role: str = "conductor", cell: str = "c1") -> None:
        self.peer = Peer(role, cell, service_id, "life-1", "0", frozenset({"h1"}), "", {}, {}, frozenset())
        self.name = service_id
        self.up, self.lowers = True, False
        self.room = 1000
        self.reports: list[Report] = []
        self.withdrawn: list[int] = []
        self.sent: list[tuple[Any, Any, int]] = []
        self.answer: Any = None

    def report(self, reports: list[Report]) -> int:
        taken = reports[: self.room]
        self.reports += taken
        self.room -= len(taken)
        return len(taken)

    def encode(self, body: Any) -> bytes:
        return f"older {body.host}".encode()

    def withdraw_report(self, key: str, seq: int) -> None:
        self.withdrawn.append(seq)

    def cast(self, method: Any, request: Any) -> None:
        self.sent.append((method, request, 0))

    def call(self, method: Any, request: Any, *, timeout_ms: int) -> Any:
        self.sent.append((method, request, timeout_ms))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class World:
    """Conductor k1; k2 owns everything unless a test says otherwise."""

    def __init__(self, limits: RelayLimits | None = None) -> None:
        self.counters = Counters()
        handlers: Any = lambda *_: None  # noqa: E731
        self.endpoint = SimpleNamespace(
            counters=self.counters, refusals=Refusals(self.counters),
            on_acks=handlers, on_link_up=handlers, on_link_down=handlers,
        )  # fmt: skip
        self.map = PartitionMap(cell="c1", version=7, owners=["k2"] * PARTITIONS)
        env: Any = SimpleNamespace(endpoint=self.endpoint, cell="c1", service_id="k1", ledger=self)
        self.env = env
        self.fellows = Fellows(env.endpoint, "c1")
        self.owner, self.agent = Link("k2"), Link("agent-1", "compute")
        self.fellows.link_up(self.owner)
        self.attached: dict[str, Any] = {"h1": self.agent}
        commands: Any = SimpleNamespace(link=self.attached.get)
        self.relay = Relay(env, self.fellows, commands, limits)
        self.answers: list[tuple[Any, Ack]] = []
        self.relay.answer = lambda link, ack: self.answers.append((link, ack))

    def report(self, seq: int = 1, key: str = UUID, link: Any = None, payload: bytes = b"body") -> None:
        body = Observation(instance_uuid=key, host="h1", generation=1, power_state=1)
        self.relay.report(link or self.agent, Report(key, seq, payload), body, 3)

    def refused(self) -> dict[str, int]:
        return {name: count for name, count in self.counters.items() if name.startswith("refused_relay_")}


@pytest.fixture
def world() -> World:
    return World()


def context(link: Any) -> Any:
    return SimpleNamespace(peer=link.peer, link=link, remaining_ms=lambda: 1234)


def test_a_report_names_what_was_verified_of_its_sender_and_only_the_owners_verdict_goes_back(world: World) -> None:
    world.report(seq=41)
    (sent,) = world.owner.reports
    relayed = msgspec.msgpack.decode(sent.payload, type=RelayedReport)
    assert (relayed.host, relayed.agent_epoch, relayed.seq, relayed.payload) == ("h1", 3, 41, b"body")
    assert (relayed.service_id, relayed.incarnation) == ("agent-1", "life-1")
    assert world.answers == [], "nothing is acknowledged before the owner"
    verdict = Ack(UUID, sent.seq, "applied", "fine", lane=5)
    world.relay.verdicts(world.owner, [verdict, verdict])
    assert world.answers == [(world.agent, Ack(UUID, 41, "applied", "fine", lane=5))]
    assert world.counters["relayed_reports"] == world.counters["relayed_late"] == 1


def test_an_older_owner_is_told_in_the_versions_that_it_reads(world: World) -> None:
    world.owner.lowers = True
    world.report()
    relayed = msgspec.msgpack.decode(world.owner.reports[0].payload, type=RelayedReport)
    assert relayed.payload == b"older h1"


def test_two_agents_with_the_same_key_and_sequence_are_told_apart(world: World) -> None:
    other = Link("agent-2", "compute")
    world.report(seq=1)
    world.report(seq=1, link=other)
    first, second = world.owner.reports
    world.relay.verdicts(world.owner, [Ack(UUID, second.seq, "stale"), Ack(UUID, first.seq, "applied")])
    assert [(link.name, ack.verdict) for link, ack in world.answers] == [("agent-2", "stale"), ("agent-1", "applied")]


def test_a_verdict_counts_only_from_the_owner_that_was_asked(world: World) -> None:
    world.report()
    forged = Ack(UUID, world.owner.reports[0].seq, "applied")
    world.relay.verdicts(Link("k3"), [forged])
    world.relay.verdicts(world.owner, [Ack("another-key", forged.seq, "applied")])
    assert world.answers == []


@pytest.mark.parametrize("owner", ["", "k1"])
def test_what_the_map_names_nobody_or_this_conductor_for_is_not_handed_on(world: World, owner: str) -> None:
    world.map = PartitionMap(cell="c1", version=8, owners=[owner] * PARTITIONS)
    with pytest.raises(NotOwner) as refused:
        world.report()
    assert (refused.value.partition, refused.value.map_version) == (partition_of(UUID), 8)


def test_an_owner_without_a_link_is_busy(world: World) -> None:
    world.owner.up = False
    with pytest.raises(Busy):
        world.report()
    assert world.refused() == {"refused_relay_no_way": 1}


@pytest.mark.parametrize(
    ("limits", "fit"),
    [
        (RelayLimits(reports_max=3), 3),
        (RelayLimits(bytes_max=11), 2),
        (RelayLimits(reports_of_link_max=4), 4),
    ],
)
def test_what_is_under_way_is_bounded(limits: RelayLimits, fit: int) -> None:
    world = World(limits)
    for seq in range(fit):
        world.report(seq)
    with pytest.raises(Busy, match=r"_max"):
        world.report(99)
    assert world.refused() == {"refused_relay_full": 1}
    world.relay.verdicts(world.owner, [Ack(UUID, world.owner.reports[0].seq, "applied")])
    world.report(99)


def test_an_owner_that_takes_no_more_is_busy_and_nothing_is_counted_as_under_way(world: World) -> None:
    world.owner.room = 0
    with pytest.raises(Busy):
        world.report()
    assert world.refused() == {"refused_relay_credit": 1}
    assert len(world.relay._window) == 0


def test_when_the_owners_link_is_lost_its_senders_are_told_to_come_again(world: World) -> None:
    world.report(seq=8)
    world.relay.link_down(world.owner)
    ((link, ack),) = world.answers
    assert (link, ack.seq, ack.verdict) == (world.agent, 8, "busy")
    assert world.owner.withdrawn == [world.owner.reports[0].seq]
    world.relay.verdicts(world.owner, [Ack(UUID, world.owner.reports[0].seq, "applied")])
    assert len(world.answers) == 1, "it comes again, and falls by its sequence"


def test_a_sender_that_is_gone_hears_nothing(world: World) -> None:
    world.report()
    world.relay.link_down(world.agent)
    world.relay.link_down(world.owner)
    assert world.answers == []
    assert world.owner.withdrawn == [world.owner.reports[0].seq]


def test_what_is_not_answered_in_time_counts_as_unanswered() -> None:
    window = RelayWindow(RelayLimits(answer_ms_max=1000))
    agent, owner = Link("agent-1", "compute"), Link("k2")
    for number, at in ((1, 10.0), (2, 10.5)):
        window.add(Handed(agent, UUID, number, number, 10, owner, at))
    assert [one.seq for one in window.expired(11.2)] == [1]
    assert (len(window), window.bytes) == (1, 10)


# -- beats, begins and commands ---------------------------------------------------------------------------------------


def test_beats_are_gathered_and_handed_on_by_owner() -> None:
    world = World(RelayLimits(beats_gather_ms=1, beat_hosts_max=2))
    world.relay.beat({"h1": 3, "h2": 1})
    world.relay.beat({"h3": 1, "h1": 4})
    wait_for(lambda: len(world.owner.sent) == 2)
    assert {method for method, _, _ in world.owner.sent} == {RELAY_BEAT}
    epochs = {host: epoch for _, request, _ in world.owner.sent for host, epoch in request.epochs.items()}
    assert epochs == {"h1": 4, "h2": 1, "h3": 1}


def test_a_begin_is_handed_to_the_hosts_owner_with_the_time_that_is_left(world: World) -> None:
    world.owner.answer = HostBeginReply(agent_epoch=9)
    request = HostBeginRequest(inventory=SimpleNamespace(name="h1"), service_id="a lie")
    assert world.relay.begin(request, context(world.agent)).agent_epoch == 9
    ((method, relayed, timeout_ms),) = world.owner.sent
    assert (method, relayed.service_id, timeout_ms) == (RELAY_BEGIN, "agent-1", 1234)


def command(world: World) -> Any:
    return dict(world.relay.handlers())[RELAY_SPAWN]


def order_for(host: str) -> Any:
    return SimpleNamespace(order=SimpleNamespace(host=host))


def test_a_command_goes_to_the_agent_that_is_attached_here_with_the_time_that_is_left(world: World) -> None:
    world.agent.answer = "recorded"
    request = order_for("h1")
    assert command(world)(request, context(world.owner)) == "recorded"
    assert world.agent.sent == [(SPAWN, request, 1234)]


def test_a_command_is_handed_on_once(world: World) -> None:
    with pytest.raises(LinkDown):
        command(world)(order_for("h2"), context(world.owner))
    assert world.owner.sent == []


def test_commands_under_way_are_bounded() -> None:
    world = World(RelayLimits(commands_at_once_max=1))
    hold = gevent.event.Event()
    world.agent.call = lambda *_, **__: hold.wait(5)
    first = gevent.spawn(command(world), order_for("h1"), context(world.owner))
    gevent.sleep(0)
    with pytest.raises(Busy):
        command(world)(order_for("h1"), context(world.owner))
    hold.set()
    first.get(timeout=5)


@pytest.mark.parametrize("asker", [Link("a", "compute"), Link("x1", cell="c2"), Link("r1", cell="root")], ids=str)
def test_only_a_conductor_of_this_cell_hands_anything_on(world: World, asker: Link) -> None:
    find = dict(world.relay.handlers())[RELAY_FIND]
    with pytest.raises(Forbidden):
        find(FindRequest(hosts=["h1"]), context(asker))
    with pytest.raises(Forbidden):
        command(world)(order_for("h1"), context(asker))
    assert world.agent.sent == []


def test_hosts_that_are_attached_here_are_found(world: World) -> None:
    find = dict(world.relay.handlers())[RELAY_FIND]
    assert find(FindRequest(hosts=["h1", "h2"]), context(world.owner)).hosts == ["h1"]


# -- the owner's side -------------------------------------------------------------------------------------------------


class Owner:
    """What an owner believes. ``rows`` are the epochs at the primary."""

    def __init__(self, limits: RelayLimits | None = None) -> None:
        self.world = World()
        self.rows = {"h1": 3}
        self.newer: dict[str, int] = {}
        self.reads = 0
        self.away = False
        self.attachments = Attachments()
        self.taken: list[int] = []
        self.refusals: list[tuple[str, str]] = []
        hosts: Any = self
        self.vouching = Vouching(
            self.world.env, hosts,
            lambda link, report, relayed: self.taken.append(relayed.seq),
            lambda link, report, verdict, detail: self.refusals.append((verdict, detail)),
            limits,
        )  # fmt: skip
        self.relay = Link("k3")

    def read(self, names: Any) -> Any:
        self.reads += 1
        gevent.sleep(0)
        if self.away:
            raise ConnectionLost("gone")
        return {
            (name,): SimpleNamespace(agent_epoch=self.rows[name]) for name in names if name in self.rows
        }, self.newer

    def hear(self, seq: int, epoch: int = 3, host: str = "h1") -> None:
        relayed = RelayedReport(host=host, service_id="a", incarnation="i", agent_epoch=epoch, seq=seq, payload=b"")
        self.vouching.received(self.relay, Report(UUID, seq, msgspec.msgpack.encode(relayed)))


def test_an_epoch_is_looked_up_once_a_link_and_all_that_came_meanwhile_waits_for_it() -> None:
    owner = Owner()
    owner.hear(1)
    owner.hear(2)
    assert owner.taken == []
    wait_for(lambda: owner.taken == [1, 2])
    owner.hear(3)
    assert (owner.taken, owner.reads) == ([1, 2, 3], 1)
    other = owner.relay = Link("k4")
    owner.hear(4)
    wait_for(lambda: owner.taken == [1, 2, 3, 4])
    assert owner.attachments.epoch(other, "h1") == 3
    assert owner.reads == 2


@pytest.mark.parametrize(("rows", "newer"), [({"h1": 4}, {}), ({"h1": 3}, {"h1": 4}), ({"h1": 2}, {}), ({}, {})])
def test_an_epoch_that_is_not_the_hosts_is_not_believed_and_the_report_is_kept_by_its_agent(
    rows: dict[str, int], newer: dict[str, int]
) -> None:
    owner = Owner()
    owner.rows, owner.newer = rows, newer
    owner.hear(1)
    wait_for(lambda: len(owner.refusals) == 1)
    assert owner.refusals[0][0] == "not_yet"
    assert owner.taken == []
    assert owner.world.refused() == {"refused_relay_epoch": 1}


def test_a_newer_agent_is_looked_up_and_the_older_is_not_heard_behind_it() -> None:
    owner = Owner()
    owner.hear(1)
    wait_for(lambda: owner.taken == [1])
    owner.rows = {"h1": 4}
    owner.hear(2, epoch=4)
    wait_for(lambda: owner.taken == [1, 2])
    owner.hear(3, epoch=3)
    assert owner.taken == [1, 2]
    assert owner.refusals[0][0] == "not_yet"


def test_news_of_a_newer_agent_ends_what_was_believed() -> None:
    owner = Owner()
    owner.hear(1)
    wait_for(lambda: owner.taken == [1])
    owner.attachments.supersede("h1", 4)
    owner.rows = {"h1": 4}
    owner.hear(2, epoch=3)
    wait_for(lambda: len(owner.refusals) == 1)
    assert owner.taken == [1]


def test_without_the_primary_or_room_the_report_comes_again() -> None:
    owner = Owner(RelayLimits(held_max=1))
    owner.away = True
    owner.hear(1)
    owner.hear(2)
    assert [verdict for verdict, _ in owner.refusals] == ["busy"]
    wait_for(lambda: len(owner.refusals) == 2)
    assert [verdict for verdict, _ in owner.refusals] == ["busy", "busy"]


def test_what_is_no_relayed_report_is_refused_for_good() -> None:
    owner = Owner()
    owner.vouching.received(owner.relay, Report(UUID, 1, b"\x80"))
    assert owner.refusals[0][0] == "invalid"
