import time
from types import SimpleNamespace

import gevent
import msgspec
import pytest

from tests.unit.conductor.ledger_world import World, wait_for
from tests.unit.conductor.tasks.samples import NOW_US, host
from zcompute.bus.errors import Forbidden, LinkDown
from zcompute.conductor.cell.claims import takes_new
from zcompute.conductor.cell.host_states import HostStates, host_state
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.hosts import Attachments, Hosts, begin_host, check_epoch
from zcompute.conductor.cell.liveness import LivenessSettings
from zcompute.conductor.cell.registration import capacity_of
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.commands import Commands
from zcompute.conductor.fellows import Fellows
from zcompute.conductor.forwarding import Forwarding
from zcompute.config import SchedulerConfig
from zcompute.db.tables import HOSTS
from zcompute.objects.errors import EpochRefused, HostNotClean, HostNotFound
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HOST_DOWN, HOST_UP, HostInventory
from zcompute.objects.messages.cluster import HostEpoch
from zcompute.objects.messages.hosts import HostAttachRequest, HostBeat, HostBeginRequest, HostForceDownRequest
from zcompute.objects.methods import ADOPT, DESTROY, SPAWN, TOPIC_EPOCHS, TOPIC_HOSTS, TOPIC_PARTITIONS
from zcompute.objects.partition import partition_of

INVENTORY = HostInventory(name="h1", total=Amounts(vcpus=8, memory_mb=4096, disk_gb=20))


class Link:
    def __init__(self, role="compute", hosts=("h1",), topics=(), cell="c1"):
        self.peer = SimpleNamespace(role=role, cell=cell, service_id="s1", hosts=frozenset(hosts), topics=topics)
        self.name, self.up, self.events, self.lowers = "link", True, [], False

    def event(self, topic, key, version, payload):
        self.events.append((topic, key, version))


class Endpoint:
    def __init__(self):
        self.on_event = self.on_link_up = self.on_link_down = lambda *_: None
        self.refused = []
        self.refusals = SimpleNamespace(count=lambda reason, peer, detail="": self.refused.append(reason))


@pytest.fixture
def world():
    made = World()
    made.endpoint = Endpoint()
    env = SimpleNamespace(
        ledger=made.ledger,
        store=made.store,
        endpoint=made.endpoint,
        cell="c1",
        config=None,
        service_id="c",
        forwarding=Forwarding(made, made.ledger, "c1"),
    )
    made.table = HostTable()
    made.table.hold(range(256))
    made.commands = Commands(made.ledger)
    made.fellows = Fellows(made.endpoint, "c1")
    made.relay = SimpleNamespace(beats={}, beat=lambda epochs: made.relay.beats.update(epochs))
    settings = CellSettings(liveness_check_ms=5, liveness=LivenessSettings(apart_s_min=0.0))
    made.hosts = Hosts(env, made.table, made.commands, made.relay, made.fellows, settings)
    yield made
    made.hosts.stop()
    made.close()


def context(link):
    return SimpleNamespace(peer=link.peer, link=link, remaining_ms=lambda: 1000)


def begin(world, link, inventory=INVENTORY):
    return world.hosts.begin(HostBeginRequest(inventory=inventory, service_id="s1"), context(link)).agent_epoch


def test_a_new_agent_raises_the_epoch_and_keeps_what_was_decided():
    first = begin_host(None, INVENTORY, "s1", NOW_US)
    assert (first.agent_epoch, first.state, first.hypervisor_hostname) == (1, HOST_UP, "h1")
    kept = msgspec.structs.replace(first, used=Amounts(vcpus=1), instances=1, disabled=True, forced_down=True)
    second = begin_host(kept, INVENTORY, "s2", NOW_US)
    assert (second.agent_epoch, second.service_id, second.used, second.instances) == (2, "s2", Amounts(vcpus=1), 1)
    assert second.disabled
    assert second.forced_down


def test_an_agent_in_doubt_is_told_the_owners_of_all_partitions_unless_it_is_the_hosts_first(world):
    def ask(in_doubt):
        request = HostBeginRequest(inventory=INVENTORY, service_id="s1", in_doubt=in_doubt)
        return world.hosts.begin(request, context(Link()))

    assert ask(True).owner_epochs == []
    assert ask(False).owner_epochs == []
    assert ask(True).owner_epochs == world.store.read_map().partition_map().epochs
    assert len(ask(True).owner_epochs) == 256


@pytest.mark.parametrize(("epoch", "verdict"), [(1, "superseded"), (3, "invalid")])
def test_only_the_present_epoch_attaches(epoch, verdict):
    with pytest.raises(EpochRefused) as refused:
        check_epoch("h1", host(agent_epoch=2), epoch)
    assert refused.value.details["verdict"] == verdict
    check_epoch("h1", host(agent_epoch=2), 2)
    with pytest.raises(EpochRefused):
        check_epoch("h1", None, 0)


def test_begin_attach_and_a_second_agent(world):
    old, new, fellow = Link(), Link(), Link(role="conductor")
    world.hosts._news.link_up(fellow)
    assert begin(world, old) == 1
    world.hosts.attach(HostAttachRequest(epochs={"h1": 1}), context(old))
    assert world.commands.link("h1") is old
    assert world.hosts.attachments.epoch(old, "h1") == 1
    assert begin(world, new) == 2
    assert fellow.events == [(TOPIC_EPOCHS, "h1", 1), (TOPIC_EPOCHS, "h1", 2)]
    assert world.hosts.attachments.epoch(old, "h1") is None
    assert world.commands.link("h1") is None
    assert old.events == [(TOPIC_EPOCHS, "h1", 2)], "the earlier is told that it is not heard any more"
    with pytest.raises(EpochRefused):
        world.hosts.attach(HostAttachRequest(epochs={"h1": 1}), context(old))
    assert world.endpoint.refused == ["agent_superseded", "agent_epoch"]
    world.hosts.attach(HostAttachRequest(epochs={"h1": 2}), context(new))
    world.hosts.link_down(new)
    assert world.commands.link("h1") is None


def test_the_news_of_another_conductor_supersedes_too(world):
    link, peer = Link(), Link(role="conductor")
    begin(world, link)
    world.hosts.attach(HostAttachRequest(epochs={"h1": 1}), context(link))
    event = SimpleNamespace(payload=msgspec.msgpack.encode(HostEpoch(host="h1", agent_epoch=2)))
    world.hosts._news.received(Link(role="compute"), event)
    assert world.commands.link("h1") is link
    world.hosts._news.received(peer, event)
    assert world.commands.link("h1") is None


def test_a_compute_speaks_of_its_own_hosts_only(world):
    link = Link(hosts=("h2",))
    with pytest.raises(Forbidden):
        begin(world, link)
    with pytest.raises(Forbidden):
        world.hosts.attach(HostAttachRequest(epochs={"h1": 1, "h2": 1}), context(link))


def test_silence_is_committed_as_down_and_beats_as_up(world):
    link = Link()
    begin(world, link)
    world.hosts.attach(HostAttachRequest(epochs={"h1": 1}), context(link))
    watched = world.hosts._liveness._hosts["h1"]
    watched.last_beat = time.monotonic() - 7
    world.hosts.start()
    wait_for(lambda: world.database.row(HOSTS, ("h1",)).state == HOST_DOWN)
    for _ in range(3):
        world.hosts.beat(HostBeat(hosts=["h1"]), context(link))
    world.hosts.beat(HostBeat(hosts=["h1"]), context(link))
    wait_for(lambda: world.database.row(HOSTS, ("h1",)).state == HOST_UP)
    wait_for(lambda: next(iter(world.table)).state == HOST_UP)


def test_beats_of_hosts_that_are_not_attached_are_not_believed(world):
    link = Link()
    begin(world, link)
    watched = world.hosts._liveness._hosts["h1"]
    watched.last_beat = 0.0
    world.hosts.beat(HostBeat(hosts=["h1"]), context(link))
    assert watched.last_beat == 0.0


def test_a_scheduler_gets_hosts_then_partitions_and_every_change(world):
    states = HostStates(world.endpoint, world.ledger, world.table)
    states.start()
    states.gained([partition_of("h1")])
    world.table.put(host(revision=1))
    scheduler = Link(role="scheduler", topics=(TOPIC_HOSTS, TOPIC_PARTITIONS))
    states.link_up(scheduler)
    assert [topic for topic, _, _ in scheduler.events] == [TOPIC_HOSTS, TOPIC_PARTITIONS]
    world.table.put(host(revision=3))
    world.table.put(host(revision=2))
    assert scheduler.events[2:] == [(TOPIC_HOSTS, "h1", 3)]
    states.link_down(scheduler)
    world.table.put(host(revision=4))
    assert len(scheduler.events) == 3
    states.link_up(Link(role="api"))
    states.lost([partition_of("h1")])
    fresh = Link(role="scheduler", topics=(TOPIC_HOSTS,))
    states.link_up(fresh)
    assert fresh.events == []


def test_rows_of_partitions_that_are_not_held_are_ignored():
    table = HostTable()
    table.put(host())
    assert len(table) == 0
    table.hold([partition_of("h1")])
    table.put(host())
    assert table.drop([partition_of("h1")]) == ["h1"]
    assert list(table) == []


def test_what_a_scheduler_sees_of_an_unwilling_host():
    assert not host_state(host(forced_down=True)).enabled
    assert not host_state(host(disabled=True)).enabled
    assert host_state(host()).enabled


def test_capacity_counts_willing_hosts_only():
    hosts = [host("h1", used=Amounts(memory_mb=1024)), host("h2"), host("h3", state=HOST_DOWN)]
    capacity = capacity_of("c1", "s1", hosts, SchedulerConfig(cpu_allocation_ratio=2.0))
    assert capacity.hosts == 2
    assert capacity.free == Amounts(vcpus=16, memory_mb=3072, disk_gb=20)
    assert capacity.largest_free == Amounts(vcpus=8, memory_mb=2048, disk_gb=10)


def test_an_agent_superseded_while_its_epoch_is_read_is_not_let_in(world):
    old = Link()
    begin(world, old)
    world.store.fetch_gate.clear()
    attaching = gevent.spawn(world.hosts.attach, HostAttachRequest(epochs={"h1": 1}), context(old))
    wait_for(lambda: len(world.database.fetches) > 1)  # the row was read, its answer is on the way
    begin(world, Link())
    world.store.fetch_gate.set()
    with pytest.raises(EpochRefused) as refused:
        attaching.get(timeout=2)
    assert refused.value.details["verdict"] == "superseded"
    assert world.hosts.attachments.epoch(old, "h1") is None
    assert world.commands.link("h1") is None


def test_a_host_of_a_lost_partition_is_watched_no_longer(world):
    begin(world, Link())
    world.hosts.start()
    world.ledger.lose([partition_of("h1")])
    world.hosts.lost([partition_of("h1")])
    world.hosts.gained([host()])  # a page that was read before the loss
    world.hosts._liveness._hosts["h1"].last_beat = time.monotonic() - 7
    wait_for(lambda: not world.hosts._liveness._hosts)


def test_a_row_that_cannot_be_read_does_not_end_the_watch(world):
    for name in ("h1", "h2"):
        begin(world, Link(hosts=(name,)), INVENTORY if name == "h1" else msgspec.structs.replace(INVENTORY, name=name))
    commit = world.hosts._commit
    world.hosts._commit = lambda name, decide: 1 / 0 if name == "h1" else commit(name, decide)
    for watched in world.hosts._liveness._hosts.values():
        watched.last_beat = time.monotonic() - 7
    world.hosts.start()
    wait_for(lambda: world.database.row(HOSTS, ("h2",)).state == HOST_DOWN)


def test_every_link_of_an_older_agent_is_superseded_and_none_is_remembered_when_gone():
    attachments = Attachments()
    old, older, present = Link(), Link(), Link()
    attachments.attach(older, {"h1": 1, "h2": 5})
    attachments.attach(old, {"h1": 2})
    attachments.attach(present, {"h1": 3})
    assert sorted(epoch for _, epoch in attachments.supersede("h1", 3)) == [1, 2]
    assert [attachments.epoch(link, "h1") for link in (older, old, present)] == [None, None, 3]
    assert attachments.epoch(older, "h2") == 5
    for link in (old, older, present):
        attachments.detach(link)
    assert attachments == Attachments()


def test_a_conductor_that_missed_the_news_of_an_agent_is_told_at_its_hello_and_by_a_new_owner(world):
    begin(world, Link())
    fellow = Link(role="conductor", topics=(TOPIC_EPOCHS,))
    other, root = Link(role="scheduler"), Link(role="conductor", topics=(TOPIC_EPOCHS,), cell="root")
    for link in (fellow, other, root):
        world.hosts._news.link_up(link)
    assert fellow.events == [(TOPIC_EPOCHS, "h1", 1)]
    world.hosts.gained([host("h7", agent_epoch=4, revision=6)])
    assert fellow.events[1:] == [(TOPIC_EPOCHS, "h7", 6)]
    world.hosts._news.link_down(fellow)
    world.hosts.gained([host("h8")])
    assert len(fellow.events) == 2
    assert other.events == root.events == []


def test_a_new_owner_hears_links_of_an_older_agent_no_more(world):
    old = Link()
    begin(world, old)
    world.hosts.attach(HostAttachRequest(epochs={"h1": 1}), context(old))
    world.hosts.gained([host(agent_epoch=2)])  # begun at the former owner, which died before it told us
    assert world.hosts.attachments.epoch(old, "h1") is None


def force(world, forced_down=True, **fields):
    request = HostForceDownRequest(host="h1", forced_down=forced_down, **fields)
    operator = SimpleNamespace(peer=SimpleNamespace(role="operator", cell="c1", service_id="op"))
    return world.hosts.force_down(request, operator)


def test_forcing_a_host_down_is_committed_told_and_takes_the_host_out(world, caplog):
    link, fellow = Link(), Link(role="conductor")
    world.hosts._news.link_up(fellow)
    begin(world, link)
    world.hosts.attach(HostAttachRequest(epochs={"h1": 1}), context(link))
    assert force(world, dry_run=True).changed
    assert not world.database.row(HOSTS, ("h1",)).forced_down
    assert force(world).changed
    assert not force(world).changed
    row = world.database.row(HOSTS, ("h1",))
    assert row.forced_down
    assert not takes_new(row)
    assert fellow.events[-1] == (TOPIC_EPOCHS, "h1", row.revision)
    assert caplog.text.count("audit: host forced_down=True host=h1 by=op") == 1
    assert world.commands.reaches("h1", DESTROY)
    assert not world.commands.reaches("h1", SPAWN)
    with pytest.raises(LinkDown, match="forced down"):
        world.commands.send("h1", SPAWN, None, timeout_ms=1)
    assert force(world, forced_down=False).changed
    assert world.commands.reaches("h1", SPAWN)


def test_a_host_that_is_not_clean_stays_forced_down(world):
    begin(world, Link())
    force(world)
    asked = []

    def check(host):
        asked.append(host)
        raise HostNotClean("it still has u1", host=host)

    world.hosts._check_clean = check
    assert force(world, forced_down=False, dry_run=True).changed
    assert asked == []
    with pytest.raises(HostNotClean):
        force(world, forced_down=False)
    assert world.database.row(HOSTS, ("h1",)).forced_down
    world.hosts._check_clean = asked.append
    assert force(world, forced_down=False).changed
    assert asked == ["h1", "h1", "h1"]


def test_a_host_is_looked_at_once_more_behind_the_commit_that_lets_it_work(world):
    """An evacuation that began in between has read that the host is forced down."""
    begin(world, Link())
    force(world)
    looks = []

    def check(host):
        looks.append(world.database.row(HOSTS, (host,)).forced_down)
        if len(looks) == 2:
            raise HostNotClean("u1 is being evacuated", host=host)

    world.hosts._check_clean = check
    with pytest.raises(HostNotClean):
        force(world, forced_down=False)
    assert looks == [True, False]
    assert world.database.row(HOSTS, ("h1",)).forced_down
    assert not world.commands.reaches("h1", SPAWN)


def test_a_host_that_is_not_known_cannot_be_forced_down(world):
    with pytest.raises(HostNotFound):
        force(world)


def test_a_forced_down_host_that_returns_is_quarantined_at_every_conductor(world):
    begin(world, Link())
    force(world)
    world.commands.force_down("h1", False)  # as at a conductor that was away then
    link = Link()
    assert begin(world, link) == 2
    world.commands.force_down("h1", False)
    world.hosts.attach(HostAttachRequest(epochs={"h1": 2}), context(link))
    assert not world.commands.reaches("h1", SPAWN)
    assert world.commands.reaches("h1", ADOPT)


def test_news_that_overtakes_the_row_being_read_counts(world):
    link, fellow = Link(), Link(role="conductor")
    begin(world, link)
    world.store.fetch_gate.clear()
    attaching = gevent.spawn(world.hosts.attach, HostAttachRequest(epochs={"h1": 1}), context(link))
    wait_for(lambda: len(world.database.fetches) > 1)
    news = HostEpoch(host="h1", agent_epoch=1, forced_down=True)
    world.hosts._news.received(fellow, SimpleNamespace(payload=msgspec.msgpack.encode(news)))
    world.store.fetch_gate.set()
    attaching.get(timeout=2)
    assert not world.commands.reaches("h1", SPAWN)
