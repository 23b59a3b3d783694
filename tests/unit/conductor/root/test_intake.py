"""Accepting and deleting servers at the root, decided against rows in memory."""

import pytest

from tests.unit.conductor.root.fakes import NOW_US, TINY, UUIDS, Decider, choosing, create_request
from zcompute.conductor.root import intake
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, OPERATIONS, USAGES
from zcompute.objects.errors import FlavorNotFound, InstanceNotFound, OperationConflict
from zcompute.objects.messages.region import ServerDeleteRequest
from zcompute.objects.notification import payload_document
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Limits

HOME = partition_of("p1")
NOVAS = Limits(instances=10, cores=20, ram_mb=51200)


@pytest.fixture
def decide():
    return Decider()


def create(decide, request, uuids=UUIDS, choose=None, flavor=TINY, default=NOVAS):
    uuids = uuids[: request.max_count]
    choose = choose or choosing("c1", "c2", "c1", "c2")
    return decide(
        HOME,
        intake.create_keys(request, uuids),
        lambda change: intake.create_servers(change, request, flavor, uuids, "r-12345678", choose, "req-1", default),
    )


def delete(decide, uuid, operation_id="op-d", project_id="p1"):
    request = ServerDeleteRequest(uuid=uuid, project_id=project_id, operation_id=operation_id)
    return decide(HOME, intake.delete_keys(request), lambda change: intake.delete_server(change, request))


def test_one_server_gets_operation_usage_mapping_and_build_request_in_one_commit(decide):
    created = create(decide, create_request())
    assert decide.ledger.commits == 1
    uuid = UUIDS[0]
    build_request = decide.ledger.get(BUILD_REQUESTS, uuid)
    assert created.build_requests == [build_request]
    assert (build_request.name, build_request.cell, build_request.generation) == ("web", "c1", 1)
    assert (build_request.created_at_us, build_request.request_id) == (NOW_US, "req-1")
    mapping = decide.ledger.get(MAPPINGS, uuid)
    assert (mapping.cell, mapping.generation, mapping.tried_cells) == ("c1", 1, [])
    usage = decide.ledger.get(USAGES, uuid)
    assert (usage.cores, usage.ram_mb) == (1, 512)
    assert decide.ledger.get(OPERATIONS, "p1", "op-1").uuids == [uuid]


def test_several_servers_are_named_and_numbered_as_nova_does(decide):
    created = create(decide, create_request(3))
    requests = created.build_requests
    assert [r.name for r in requests] == ["web-1", "web-2", "web-3"]
    assert [r.spec.launch_index for r in requests] == [0, 1, 2]
    assert {r.spec.reservation_id for r in requests} == {"r-12345678"} == {created.reply.reservation_id}
    assert [r.cell for r in requests] == ["c1", "c2", "c1"]


def test_a_repeat_gets_the_first_outcome_and_hands_nothing_off(decide):
    first = create(decide, create_request())
    again = create(decide, create_request(), uuids=UUIDS[5:], flavor=None)
    assert again.reply == first.reply
    assert again.build_requests == []
    assert decide.ledger.commits == 1


def test_an_operation_id_used_for_another_request_is_a_conflict(decide):
    create(decide, create_request())
    with pytest.raises(OperationConflict):
        create(decide, create_request(digest="other"), uuids=UUIDS[5:])
    with pytest.raises(OperationConflict):
        delete(decide, UUIDS[0], operation_id="op-1")
    assert decide.ledger.commits == 1


def test_without_a_flavor_nothing_is_written(decide):
    with pytest.raises(FlavorNotFound):
        create(decide, create_request(), flavor=None)
    assert decide.ledger.rows == {}


def test_without_a_known_cell_the_server_is_accepted_without_one(decide):
    created = create(decide, create_request(), choose=choosing())
    assert created.build_requests[0].cell is None


def test_deleting_a_server_on_its_way_marks_it_and_leaves_the_rest_to_the_hand_off(decide):
    create(decide, create_request())
    assert delete(decide, UUIDS[0]).accepted
    assert decide.ledger.get(BUILD_REQUESTS, UUIDS[0]).delete_requested
    assert decide.ledger.get(MAPPINGS, UUIDS[0]) is not None
    assert delete(decide, UUIDS[0]).accepted, "a repeat gets the first outcome"
    assert delete(decide, UUIDS[0], operation_id="another").accepted, "it is not gone yet"


@pytest.mark.parametrize("change", [{"state": "error", "cell": None}, {"cell": None}])
def test_deleting_a_server_that_no_cell_can_have_deletes_all_its_rows(decide, change):
    create(decide, create_request())
    build_request = decide.ledger.get(BUILD_REQUESTS, UUIDS[0])
    for name, value in change.items():
        setattr(build_request, name, value)
    assert delete(decide, UUIDS[0]).accepted
    for table in (BUILD_REQUESTS, MAPPINGS, USAGES):
        assert decide.ledger.get(table, UUIDS[0]) is None
    assert delete(decide, UUIDS[0]).accepted, "a repeat gets the first outcome"
    states = [(told.event_type, payload_document(told.payload)["data"]["state"]) for told in decide.ledger.told]
    was = "error" if "state" in change else "building"
    assert states == [("instance.delete.start", was), ("instance.delete.end", "deleted")], "told once"


def test_deleting_a_server_that_a_cell_has_names_the_cell(decide):
    create(decide, create_request())
    decide.ledger.rows.pop((BUILD_REQUESTS.name, (UUIDS[0],)))
    reply = delete(decide, UUIDS[0])
    assert (reply.accepted, reply.cell) == (False, "c1")


def test_an_unknown_server_or_another_projects_is_not_found(decide):
    with pytest.raises(InstanceNotFound):
        delete(decide, UUIDS[0])
    create(decide, create_request())
    decide.ledger.get(MAPPINGS, UUIDS[0]).project_id = "p2"
    with pytest.raises(InstanceNotFound):
        delete(decide, UUIDS[0])
