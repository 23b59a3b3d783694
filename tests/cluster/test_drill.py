"""The drill: a thief holds a compute's valid key, on a real region. It gets nothing that is not its own hosts'."""

import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gevent
import msgspec
import pytest

from tests.cluster.region import assert_all_active, boot, started, wait_until
from tests.orders import make_order
from zcompute.bus import Ack, Endpoint, Identity, Link, Report, register_error
from zcompute.bus.errors import BusError, Forbidden, UnknownMethod
from zcompute.bus.inside import BUILT_IN
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import CONDUCTOR, Shape
from zcompute.cli.up.region import Region
from zcompute.keys import read_keyring, read_keys
from zcompute.objects import methods
from zcompute.objects.command import AdoptRequest, DestroyRequest
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty, HostEpoch
from zcompute.objects.messages.hosts import HostAttachRequest, HostBeat, HostBeginRequest, HostGrantsRequest
from zcompute.objects.methods import (
    HOST_ATTACH,
    HOST_BEAT,
    HOST_BEGIN,
    HOST_GRANTS,
    MAP_GET,
    RELAY_ADOPT,
    RELAY_BEAT,
    RELAY_DESTROY,
    RELAY_FIND,
    TOPIC_EPOCHS,
    TOPIC_MAP,
    TOPIC_ROLES,
)
from zcompute.objects.partition import PARTITIONS, PartitionMap
from zcompute.objects.relay import FindRequest, RelayedBeat, RelayedReport
from zcompute.objects.report import VERDICT_APPLIED, VERDICT_INVALID, VERDICT_NOT_OWNER, Observation

STOLEN, VICTIM = "c1-compute-1", "c1-compute-2"
ALL_METHODS = [found for found in vars(methods).values() if isinstance(found, Method)]
OWN_BUSINESS = {"cluster.map_get", "host.begin", "host.attach", "host.beat", "host.grants"}
CALL_MS = 3000


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    for error in SERVICE_ERRORS:
        register_error(error)
    shape = Shape(cells=("c1", "c2"), computes=2, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as made:
        assert_all_active(boot(made, 12))
        made.kill(STOLEN)
        yield made


@dataclass
class Thief:
    """Endpoints with the stolen key, and what reached them."""

    region: Region
    endpoints: list[Endpoint] = field(default_factory=list)
    heard: list[tuple[str, str]] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)

    @property
    def own_hosts(self) -> tuple[str, ...]:
        return self.region.plans[STOLEN].hosts

    @property
    def other_host(self) -> str:
        return self.region.plans[VICTIM].hosts[0]

    def endpoint(
        self,
        *,
        role: str = "compute",
        cell: str = "c1",
        service_id: str = STOLEN,
        hosts: tuple[str, ...] | None = None,
        topics: tuple[str, ...] = (TOPIC_MAP,),
    ) -> Endpoint:
        pair = read_keys(str(self.region.paths.key(STOLEN)))
        claimed = frozenset(self.own_hosts if hosts is None else hosts)
        made = Endpoint(Identity(role, cell, service_id, "1", claimed, pair.public_key, pair.secret_key), topics=topics)
        for topic in TOPIC_ROLES:
            made.on_event(topic, lambda link, event: self.heard.append((event.topic, event.key)))
        made.on_acks(lambda link, acks: self.acks.extend(acks))
        self.endpoints.append(made)
        return made

    def dial(self, endpoint: Endpoint, service_id: str) -> Link:
        key = read_keys(str(self.region.paths.key(service_id))).public_key
        return endpoint.dial(f"tcp://127.0.0.1:{self.region.file.bus_ports[service_id]}", key)

    def linked(self, cell: str = "c1") -> list[Link]:
        """Links to every conductor of the cell, as the stolen key's own service."""
        endpoint = self.endpoint()
        links = [self.dial(endpoint, plan.id) for plan in self.region.plans.values() if _is_conductor(plan, cell)]
        assert all(link.wait_up(10_000) for link in links)
        return links


def _is_conductor(plan: Any, cell: str) -> bool:
    return bool(plan.kind == CONDUCTOR and plan.cell == cell)


@pytest.fixture
def thief(region: Region) -> Iterator[Thief]:
    made = Thief(region)
    yield made
    for endpoint in made.endpoints:
        endpoint.close()


def ask(link: Link, method: Any, request: msgspec.Struct) -> str:
    """What comes of a call without the caller's own checks: "answered" or the error's name."""
    link._spoken[id(method)] = link._endpoint.prepare(method)
    try:
        link.call(method, request, timeout_ms=CALL_MS)
    except BusError as error:
        return error.wire_name
    return "answered"


def region_map(link: Link) -> PartitionMap:
    found: PartitionMap = link.call(MAP_GET, Empty(), timeout_ms=CALL_MS).map
    return found


def hosts_in_state(region: Region, state: str) -> set[str]:
    api = region.client()
    services = api.get("/v2.1/os-services")["services"]
    api.close()
    return {row["host"] for row in services if row["binary"] == "nova-compute" and row["state"] == state}


def test_every_method_is_refused_but_a_computes_own(thief: Thief) -> None:
    assert len(ALL_METHODS) > 20
    refused = {Forbidden.wire_name, UnknownMethod.wire_name}
    for link in thief.linked():
        for method in [*ALL_METHODS, *BUILT_IN]:
            name = f"{method.interface}.{method.name}"
            if name in OWN_BUSINESS:
                continue
            if method.reply is None:
                link._spoken[id(method)] = link._endpoint.prepare(method)
                link.cast(method, Empty())
            else:
                assert ask(link, method, Empty()) in refused, name
        assert link.up


def test_calls_about_another_agents_host_are_refused(thief: Thief) -> None:
    inventory = HostInventory(name=thief.other_host, total=Amounts(vcpus=1, memory_mb=1, disk_gb=1))
    for link in thief.linked():
        assert ask(link, HOST_BEGIN, HostBeginRequest(inventory=inventory, service_id=VICTIM)) == "Forbidden"
        for epoch in (1, 2, 99):
            assert ask(link, HOST_ATTACH, HostAttachRequest(epochs={thief.other_host: epoch})) == "Forbidden"
            mixed = {thief.own_hosts[0]: 1, thief.other_host: epoch}
            assert ask(link, HOST_ATTACH, HostAttachRequest(epochs=mixed)) == "Forbidden"
        for partition in (0, PARTITIONS - 1):
            asked = HostGrantsRequest(host=thief.other_host, partitions=[partition])
            assert ask(link, HOST_GRANTS, asked) == "Forbidden"


def test_reports_about_other_hosts_and_their_instances_change_nothing(region: Region, thief: Thief) -> None:
    api = region.client()
    servers = api.get("/v2.1/servers/detail?limit=100")["servers"]
    theirs = [row for row in servers if row["OS-EXT-SRV-ATTR:host"] not in thief.own_hosts]
    assert theirs
    links = thief.linked()
    own = thief.own_hosts[0]
    for link in links:
        for epoch in range(1, 9):
            if ask(link, HOST_ATTACH, HostAttachRequest(epochs={own: epoch})) == "answered":
                break
    sent = 0
    for server in theirs:
        for host in (server["OS-EXT-SRV-ATTR:host"], own):
            for generation in (0, 1, 2, 1000):
                lie = Observation(
                    instance_uuid=server["id"], host=host, generation=generation, power_state=4, gone=True
                )
                sent += 1
                for link in links:
                    assert link.report([Report(server["id"], sent, msgspec.msgpack.encode(lie))]) == 1
    wait_until(lambda: len(thief.acks) >= sent * len(links), "an answer to each report", found=lambda: len(thief.acks))
    verdicts = {ack.verdict for ack in thief.acks}
    assert VERDICT_APPLIED not in verdicts
    assert verdicts - {VERDICT_NOT_OWNER}, "owners were asked too"
    after = {row["id"]: row for row in api.get("/v2.1/servers/detail?limit=100")["servers"]}
    for row in theirs:
        assert after[row["id"]] == row
    api.close()


def test_a_compute_hands_nothing_on_for_others(region: Region, thief: Thief) -> None:
    """The methods are refused by its role (above); its reports are its own, never relayed ones."""
    api = region.client()
    servers = api.get("/v2.1/servers/detail?limit=100")["servers"]
    theirs = [row for row in servers if row["OS-EXT-SRV-ATTR:host"] not in thief.own_hosts]
    links = thief.linked()
    for seq, server in enumerate(theirs, 1):
        host = server["OS-EXT-SRV-ATTR:host"]
        lie = Observation(instance_uuid=server["id"], host=host, generation=1, power_state=4, gone=True)
        relayed = RelayedReport(
            host=host,
            service_id=VICTIM,
            incarnation="i",
            agent_epoch=1,
            seq=10_000,
            payload=msgspec.msgpack.encode(lie),
        )
        for link in links:
            assert link.report([Report(server["id"], seq, msgspec.msgpack.encode(relayed))]) == 1
    wanted = len(theirs) * len(links)
    wait_until(lambda: len(thief.acks) >= wanted, "an answer to each report", found=lambda: len(thief.acks))
    assert {ack.verdict for ack in thief.acks} == {VERDICT_INVALID}
    after = {row["id"]: row for row in api.get("/v2.1/servers/detail?limit=100")["servers"]}
    assert all(after[row["id"]] == row for row in theirs)
    api.close()


def test_a_conductor_of_another_cell_does_not_even_shake_hands(region: Region) -> None:
    endpoint = _as_conductor(region, "c2-conductor-1")
    key = read_keys(str(region.paths.key("c1-conductor-1"))).public_key
    link = endpoint.dial(f"tcp://127.0.0.1:{region.file.bus_ports['c1-conductor-1']}", key)
    try:
        wait_until(lambda: endpoint.counters["handshakes_failed"] >= 1, "the handshake refused")
        assert not link.up
    finally:
        endpoint.close()


def test_a_conductor_of_the_root_hands_nothing_on_in_a_cell(region: Region) -> None:
    """Cells dial the root, so whoever has a root conductor's key and place is called by them, and can call them."""
    name = "root-conductor-2"
    region.kill(name)
    endpoint = _as_conductor(region, name)
    try:
        endpoint.bind(f"tcp://127.0.0.1:{region.file.bus_ports[name]}")
        wait_until(lambda: endpoint.links(role="conductor", cell="c1"), "a conductor of c1 dials")
        host = region.plans[VICTIM].hosts[0]
        for link in endpoint.links(role="conductor", cell="c1"):
            assert ask(link, RELAY_FIND, FindRequest(hosts=[host])) == Forbidden.wire_name
            order = make_order(str(uuid.uuid4()), host=host, owner_epoch=1 << 40)
            for method, request in ((RELAY_DESTROY, DestroyRequest), (RELAY_ADOPT, AdoptRequest)):
                assert ask(link, method, request(order=order)) == Forbidden.wire_name
    finally:
        endpoint.close()
        region.restart(name)
        region.wait_ready()


def _as_conductor(region: Region, name: str) -> Endpoint:
    pair = read_keys(str(region.paths.key(name)))
    cell = region.plans[name].cell
    identity = Identity("conductor", cell, name, "1", frozenset(), pair.public_key, pair.secret_key)
    return Endpoint(identity, keyring=read_keyring(str(region.paths.keyring(cell))))


@pytest.mark.parametrize(
    "claim",
    [
        {"role": "conductor"},
        {"role": "api", "cell": "root"},
        {"role": "scheduler"},
        {"role": "operator"},
        {"cell": "c2"},
        {"cell": "root"},
        {"hosts": ("c1-host-01", "c1-host-02", "c1-host-03")},
        {"hosts": ("c1-host-03", "c1-host-04"), "service_id": VICTIM},
        {"topics": ("cells",)},
        {"topics": ("hosts", "map")},
        {"topics": ("partitions",)},
        {"topics": ("epochs",)},
    ],
)
def test_another_identity_or_topic_is_refused(thief: Thief, claim: dict[str, Any]) -> None:
    endpoint = thief.endpoint(**claim)
    link = thief.dial(endpoint, "c1-conductor-1")
    wait_until(lambda: endpoint.counters["hellos_refused"] >= 1, "the hello refused")
    assert not link.up
    assert thief.heard == []


@pytest.mark.parametrize("cell", ["root", "c2"])
def test_other_cells_do_not_even_shake_hands(thief: Thief, cell: str) -> None:
    endpoint = thief.endpoint()
    link = thief.dial(endpoint, f"{cell}-conductor-1")
    wait_until(lambda: endpoint.counters["handshakes_failed"] >= 1, "the handshake refused")
    assert not link.up


def test_events_from_a_compute_are_not_believed(region: Region, thief: Thief) -> None:
    links = thief.linked()
    known = region_map(links[0])
    forged = msgspec.structs.replace(known, version=known.version + 1000, owners=[STOLEN] * len(known.owners))
    epoch = HostEpoch(host=thief.other_host, agent_epoch=999)
    for link in links:
        link.event(TOPIC_MAP, "c1", forged.version, msgspec.msgpack.encode(forged))
        link.event(TOPIC_EPOCHS, thief.other_host, 999, msgspec.msgpack.encode(epoch))
        for topic in ("cells", "hosts", "partitions", "nonsense"):
            link.event(topic, "x", 1, b"\x80")
        assert region_map(link).version < forged.version, "asked on the same link, behind the events"
    assert set(region.plans[VICTIM].hosts) <= hosts_in_state(region, "up")
    assert {topic for topic, _ in thief.heard} <= {TOPIC_MAP}


def test_beats_for_another_agents_host_do_not_keep_it_up(region: Region, thief: Thief) -> None:
    links = thief.linked()
    hosts = list(region.plans[VICTIM].hosts)
    region.kill(VICTIM, signal.SIGSTOP)
    try:
        for _ in range(200):
            for link in links:
                link.cast(HOST_BEAT, HostBeat(hosts=hosts))
                link._spoken[id(RELAY_BEAT)] = link._endpoint.prepare(RELAY_BEAT)
                link.cast(RELAY_BEAT, RelayedBeat(epochs=dict.fromkeys(hosts, 1)))
            gevent.sleep(0.1)
            if set(hosts) <= hosts_in_state(region, "down"):
                break
        assert set(hosts) <= hosts_in_state(region, "down")
    finally:
        region.kill(VICTIM, signal.SIGCONT)
    wait_until(lambda: set(hosts) <= hosts_in_state(region, "up"), "the victim's hosts up again")


def test_the_victims_link_lived_through_the_drill(region: Region, thief: Thief) -> None:
    thief.linked()
    wait_until(lambda: set(region.plans[VICTIM].hosts) <= hosts_in_state(region, "up"), "the victim up")
    assert region.processes[VICTIM].alive
    log = region.paths.log(VICTIM).read_text()
    assert "replaced by another incarnation" not in log
