"""The handlers of the root role, over a ledger and a store in memory."""

from types import SimpleNamespace

import gevent
import pytest

from tests.unit.conductor.root.fakes import (
    TINY,
    UUIDS,
    FakeEndpoint,
    FakeLedger,
    FakeLink,
    FakeStore,
    context,
    create_request,
)
from zcompute.bus.errors import Busy, DeadlineExceeded, Forbidden, InvalidRequest, NotOwner, Unavailable
from zcompute.conductor.forwarding import Forwarding
from zcompute.conductor.reading import ClientReads
from zcompute.conductor.root.role import RootRole, new_reservation_id
from zcompute.conductor.root.settings import HandOffLimits, RootSettings
from zcompute.config import ConductorConfig, NotificationsConfig, QuotaConfig
from zcompute.db.errors import ConnectionLost
from zcompute.db.replicas.reading import Reading
from zcompute.db.tables import BUILD_REQUESTS, CELLS, FLAVORS, MAPPINGS
from zcompute.objects import methods
from zcompute.objects.cell import CellCapacity, CellInfo
from zcompute.objects.errors import FlavorNotFound, InstanceNotFound, StoredObjectInvalid
from zcompute.objects.flavor import Amounts
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.region import (
    CellRegisterRequest,
    FlavorGetRequest,
    LocateRequest,
    MappingReleaseRequest,
    ServerDeleteRequest,
)
from zcompute.objects.partition import ConductorInfo, partition_of

ROOM = Amounts(vcpus=100, memory_mb=51200, disk_gb=100)
HOME = partition_of("p1")


class Region:
    def __init__(self):
        self.ledger, self.endpoint = FakeLedger(), FakeEndpoint()
        self.store = FakeStore(self.ledger)
        self.forwarded = []
        router = SimpleNamespace(
            call=lambda key, method, request, timeout_ms, lasts_ms: self.forwarded.append((key, request))
        )
        env = SimpleNamespace(
            config=SimpleNamespace(
                conductor=ConductorConfig(), notifications=NotificationsConfig(), quota=QuotaConfig()
            ),
            cell="root",
            endpoint=self.endpoint,
            store=self.store,
            ledger=self.ledger,
            router=router,
            root_router=None,
            forwarding=Forwarding(router, self.ledger, "root"),
            reads=ClientReads(Reading(self.store), lambda: True),
        )
        uuids = iter(UUIDS)
        self.role = RootRole(
            env,
            settings=RootSettings(flavor_cache_ms=0, cells_poll_ms=20),
            hand_off_limits=HandOffLimits(retry_ms_min=1, retry_ms_max=20, idle_ms=50, queue_max=8, scan_rows_max=4),
            make_uuid=lambda: next(uuids),
        )
        self.handlers = {method.name + "." + method.interface: handler for method, handler in self.role.handlers()}
        self.ledger.rows[(FLAVORS.name, ("1",))] = TINY

    def call(self, method, request, caller=None):
        return self.handlers[method.name + "." + method.interface](request, caller or context())

    def capacity(self, cell, service_id="s1"):
        told = CellCapacity(cell=cell, service_id=service_id, free=ROOM, largest_free=ROOM, hosts=1)
        self.call(methods.CELL_CAPACITY, told, context(cell, service_id, "conductor"))

    def link(self, cell, *answers):
        link = FakeLink(cell, answers=answers)
        self.endpoint.up.append(link)
        return link

    def until(self, condition):
        with gevent.Timeout(5):
            while not condition():
                gevent.sleep(0.005)


@pytest.fixture
def region():
    made = Region()
    made.role.start()
    yield made
    made.role.stop()


def test_a_created_server_reaches_the_cell_with_room(region):
    link = region.link("c1")
    region.capacity("c1")
    reply = region.call(methods.SERVERS_CREATE, create_request())
    assert reply.uuids == UUIDS[:1]
    region.until(lambda: link.calls)
    region.until(lambda: region.ledger.get(BUILD_REQUESTS, UUIDS[0]) is None)
    located = region.call(methods.SERVERS_LOCATE, LocateRequest(uuid=UUIDS[0]))
    assert (located.mapping.cell, located.build_request) == ("c1", None)


def test_a_committed_server_is_handed_off_even_if_its_caller_gave_up(region):
    link = region.link("c1")
    region.capacity("c1")
    ticket = region.ledger.submit
    region.ledger.submit = lambda *args: GivesUp(ticket(*args))
    with pytest.raises(DeadlineExceeded):
        region.call(methods.SERVERS_CREATE, create_request())
    region.ledger.submit = ticket
    region.until(lambda: link.calls)


class GivesUp:
    """A ticket whose caller does not wait long enough."""

    def __init__(self, ticket):
        self.on_done = ticket.on_done

    def wait(self, timeout_ms):
        raise DeadlineExceeded("too late")


def test_a_create_elsewhere_than_at_the_owner_is_refused(region):
    region.ledger.lost.add(HOME)
    with pytest.raises(NotOwner):
        region.call(methods.SERVERS_CREATE, create_request())


def test_an_unknown_or_disabled_flavor_is_not_found(region):
    request = create_request()
    request.flavorid = "9"
    with pytest.raises(FlavorNotFound):
        region.call(methods.SERVERS_CREATE, request)
    TINY.disabled = True
    try:
        with pytest.raises(FlavorNotFound):
            region.call(methods.SERVERS_CREATE, create_request())
    finally:
        TINY.disabled = False
    assert region.ledger.all(MAPPINGS) == []


@pytest.mark.parametrize(("least", "most"), [(0, 0), (2, 1), (1, 100_000)])
def test_counts_out_of_range_are_invalid_and_name_the_field(region, least, most):
    request = create_request()
    request.min_count, request.max_count = least, most
    with pytest.raises(InvalidRequest) as raised:
        region.call(methods.SERVERS_CREATE, request)
    assert raised.value.field == "max_count"


def test_more_servers_than_may_wait_for_cells_are_told_busy(region):
    for number in range(4):
        region.call(methods.SERVERS_CREATE, create_request(2, operation_id=f"op-{number}"))
    with pytest.raises(Busy):
        region.call(methods.SERVERS_CREATE, create_request(operation_id="one-more"))


def test_a_server_is_not_gone_before_its_cell_has_deleted_it(region):
    region.capacity("c1")
    region.call(methods.SERVERS_CREATE, create_request())
    where = LocateRequest(uuid=UUIDS[0], project_id="p1")
    assert region.call(methods.SERVERS_LOCATE, where).build_request is not None
    delete = ServerDeleteRequest(uuid=UUIDS[0], project_id="p1", operation_id="d")
    assert region.call(methods.SERVERS_DELETE, delete).accepted
    assert region.call(methods.SERVERS_LOCATE, where).build_request.delete_requested


def test_another_projects_server_is_not_found(region):
    region.call(methods.SERVERS_CREATE, create_request())
    with pytest.raises(InstanceNotFound):
        region.call(methods.SERVERS_LOCATE, LocateRequest(uuid=UUIDS[0], project_id="p2"))


def test_a_refused_server_goes_to_the_next_cell(region):
    first, second = region.link("c1"), region.link("c2")
    region.capacity("c1")
    region.call(methods.SERVERS_CREATE, create_request())
    region.until(lambda: first.calls and not len(region.role._hand_off))
    region.capacity("c2")
    refusal = MappingReleaseRequest(
        uuid=UUIDS[0],
        project_id="p1",
        cell="c1",
        generation=1,
        reason="full",
        build_request=first.calls[0][1].build_request,
    )
    conductor = context("c1", "s1", "conductor")
    region.call(methods.MAPPING_REFUSED, refusal, conductor)
    region.until(lambda: second.calls)
    region.call(methods.MAPPING_REFUSED, refusal, conductor)
    assert region.ledger.get(MAPPINGS, UUIDS[0]).cell == "c2"
    assert len(second.calls) == 1


def test_a_server_that_no_cell_takes_is_told_with_the_change_that_says_so(region):
    link = region.link("c1")
    region.capacity("c1")
    region.call(methods.SERVERS_CREATE, create_request())
    region.until(lambda: link.calls and not len(region.role._hand_off))
    refusal = MappingReleaseRequest(
        uuid=UUIDS[0],
        project_id="p1",
        cell="c1",
        generation=1,
        reason="full",
        build_request=link.calls[0][1].build_request,
    )
    assert region.ledger.told == []
    for _ in range(2):
        region.call(methods.MAPPING_REFUSED, refusal, context("c1", "s1", "conductor"))
    (told,) = region.ledger.told
    assert (told.event_type, told.instance_uuid) == ("instance.create.error", UUIDS[0])


def test_a_cells_key_speaks_for_its_own_cell_only(region):
    stranger = context("c2", "s1", "conductor")
    release = MappingReleaseRequest(uuid=UUIDS[0], project_id="p1", cell="c1", generation=1)
    told = CellCapacity(cell="c1", service_id="s1", free=ROOM, largest_free=ROOM)
    for method, request in (
        (methods.MAPPING_DELETED, release),
        (methods.MAPPING_REFUSED, release),
        (methods.CELL_CAPACITY, told),
        (methods.CELL_REGISTER, CellRegisterRequest(cell=CellInfo(name="c1"))),
    ):
        with pytest.raises(Forbidden):
            region.call(method, request, stranger)
    assert region.endpoint.refused == [("foreign_cell", "conductor/s1@c2")] * 4, "each is counted"
    with pytest.raises(Forbidden):
        region.call(methods.CELL_CAPACITY, told, context("c1", "another", "conductor"))


def register(region, *service_ids, caller=None, version=1, term=1):
    conductors = [ConductorInfo(service_id=name, incarnation="i", address="tcp://a:1") for name in service_ids]
    told = CellInfo(name="c1", conductors=conductors, map_version=version, term=term)
    request = CellRegisterRequest(cell=told)
    return region.call(methods.CELL_REGISTER, request, caller or context("c1", "s1", "conductor"))


def test_a_cell_is_written_and_pushed_only_when_it_changed(region):
    register(region, "b", "a")
    commits = region.ledger.commits
    register(region, "a", "b")
    assert region.ledger.commits == commits
    register(region, "a", version=2)
    assert region.ledger.commits == commits + 1
    assert [(key, version) for _, key, version in region.endpoint.published] == [("c1", 1), ("c1", 2)]
    assert region.call(methods.CELL_LIST, Empty()).cells == region.ledger.all(CELLS)


def registered(region):
    return [conductor.service_id for conductor in region.ledger.rows[(CELLS.name, ("c1",))].conductors]


def test_an_older_registration_that_comes_late_changes_nothing(region):
    register(region, "a", "b", version=5)
    register(region, "a", version=8)
    register(region, "a", "b", version=7)
    assert registered(region) == ["a"]
    register(region, "a", version=9)  # the same conductors: remembered all the same
    register(region, "a", "c", version=8)
    assert registered(region) == ["a"]
    register(region, "b", version=2, term=2)  # a promoted primary
    register(region, "a", version=10, term=1)
    assert registered(region) == ["b"]


def test_a_registration_is_forwarded_to_the_owner_once(region):
    region.ledger.lost.add(partition_of("global"))
    register(region, "a")
    assert [key for key, _ in region.forwarded] == ["global"]
    with pytest.raises(NotOwner):
        register(region, "a", caller=context("root", "root-2", "conductor"))


def test_too_many_conductors_or_the_roots_own_name_are_invalid(region):
    with pytest.raises(InvalidRequest):
        register(region, *(f"s{number}" for number in range(17)))
    request = CellRegisterRequest(cell=CellInfo(name="root"))
    with pytest.raises(InvalidRequest):
        region.call(methods.CELL_REGISTER, request, context("root", "root-2", "conductor"))


def test_a_new_link_is_told_all_cells_if_it_wants_them(region):
    register(region, "a")
    api, other = FakeLink("root"), FakeLink("root")
    api.peer.topics = frozenset({methods.TOPIC_CELLS})
    for link in (api, other):
        for callback in region.endpoint.link_up_callbacks:
            callback(link)
    assert [(key, version) for _, key, version, _ in api.events] == [("c1", 1)]
    assert other.events == []


def test_a_change_committed_by_another_conductor_is_pushed(region):
    region.ledger.rows[(CELLS.name, ("c7",))] = CellInfo(name="c7", revision=4)
    region.until(lambda: (methods.TOPIC_CELLS, "c7", 4) in region.endpoint.published)


def test_a_gained_partition_is_resumed_and_a_lost_one_dropped(region):
    region.call(methods.SERVERS_CREATE, create_request())
    region.ledger.lost.add(HOME)
    for callback in region.ledger.lose_callbacks:
        callback([HOME])
    assert len(region.role._hand_off) == 0
    region.ledger.lost.clear()
    link = region.link("c1")
    region.capacity("c1")
    for callback in region.ledger.gain_callbacks:
        callback([HOME])
    region.until(lambda: link.calls)


def test_flavors_are_listed_and_shown(region):
    assert region.call(methods.FLAVOR_LIST, Empty()).flavors == [TINY]
    assert region.call(methods.FLAVOR_GET, FlavorGetRequest(flavorid="1")).flavor == TINY
    with pytest.raises(FlavorNotFound):
        region.call(methods.FLAVOR_GET, FlavorGetRequest(flavorid="9"))


def test_a_database_that_is_away_is_unavailable_not_an_odd_failure(region):
    def away(*args, **kwargs):
        raise ConnectionLost("gone")

    region.store.fetch = region.store.scan = away
    with pytest.raises(Unavailable):
        region.call(methods.SERVERS_LOCATE, LocateRequest(uuid=UUIDS[0]))
    with pytest.raises(Unavailable):
        region.call(methods.FLAVOR_LIST, Empty())


def test_reservation_ids_look_as_novas():
    reservation_id = new_reservation_id()
    assert reservation_id.startswith("r-")
    assert len(reservation_id) == 10


def test_a_pending_row_that_cannot_be_read_keeps_back_its_own_partition_only(region):
    region.call(methods.SERVERS_CREATE, create_request())
    region.ledger.lost.add(HOME)
    for callback in region.ledger.lose_callbacks:
        callback([HOME])
    region.ledger.lost.clear()
    scan, broken = region.store.scan, (HOME + 1) % 256

    def reading(table, *, partitions=None, **rest):
        if partitions is not None and broken in partitions:
            raise StoredObjectInvalid("not a stored ServerSpec")
        rows = scan(table, **rest)
        return rows if partitions is None else [row for row in rows if partition_of(row.project_id) in partitions]

    region.store.scan = reading
    link = region.link("c1")
    region.capacity("c1")
    for callback in region.ledger.gain_callbacks:
        callback(list(range(256)))
    region.until(lambda: link.calls)
