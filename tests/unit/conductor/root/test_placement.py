"""Cells acknowledge, refuse and lose servers; every decision may come twice, late, or from a cell that has no say."""

import pytest

from tests.unit.conductor.root.fakes import NOW_US, TINY, UUIDS, Decider, choosing, create_request
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.root import intake, placement
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, USAGES
from zcompute.objects.messages.region import MappingReleaseRequest
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Limits

HOME = partition_of("p1")
UUID = UUIDS[0]
LATER_US = NOW_US + 10**9


@pytest.fixture
def region():
    """One server, decided to go to c1."""
    decider = Decider()
    start(decider, "c1")
    return decider


def start(decider, cell):
    request = create_request()
    decider(
        HOME,
        intake.create_keys(request, UUIDS[:1]),
        lambda change: intake.create_servers(change, request, TINY, UUIDS[:1], "r-1", choosing(cell), "", Limits()),
    )


def on_rows(decider, decide):
    return decider(HOME, intake.server_keys(UUID, "p1"), decide)


def settle(decider, generation=1):
    return on_rows(decider, lambda change: placement.settle_handed(change, UUID, generation))


def assign(decider, choose, unsent_to=None, generation=1, give_up_at_us=LATER_US):
    return on_rows(
        decider, lambda change: placement.assign_cell(change, UUID, generation, unsent_to, choose, give_up_at_us)
    )


def release(cell="c1", generation=1, reason="", build_request=None, project_id="p1"):
    return MappingReleaseRequest(
        uuid=UUID, project_id=project_id, cell=cell, generation=generation, reason=reason, build_request=build_request
    )


def refused(decider, choose, **kwargs):
    request = release(**kwargs)
    return on_rows(decider, lambda change: placement.mapping_refused(change, request, choose))


def deleted(decider, **kwargs):
    request = release(**kwargs)
    return on_rows(decider, lambda change: placement.mapping_deleted(change, request))


def rows(decider):
    return tuple(decider.ledger.get(table, UUID) for table in (MAPPINGS, BUILD_REQUESTS, USAGES))


def test_an_acknowledged_build_request_goes_and_the_mapping_stays(region):
    assert settle(region) is None
    mapping, build_request, usage = rows(region)
    assert mapping.cell == "c1"
    assert build_request is None
    assert usage is not None
    assert settle(region) is None, "a repeat finds nothing to do"


def test_an_acknowledgement_of_an_older_generation_leaves_the_newer_request(region):
    refused(region, choosing("c2"))
    assert settle(region, generation=1) is None
    assert rows(region)[1].cell == "c2"


def test_a_deletion_asked_for_meanwhile_is_carried_to_the_cell_first(region):
    rows(region)[1].delete_requested = True
    assert settle(region).uuid == UUID
    on_rows(region, lambda change: placement.settle_deleted(change, UUID, 1))
    mapping, build_request, usage = rows(region)
    assert build_request is None
    assert mapping is not None, "the cell's outbox releases it"
    assert usage is not None
    assert deleted(region)
    assert rows(region) == (None, None, None)


def test_a_refusal_moves_the_server_to_the_next_cell_under_a_higher_generation(region):
    build_request = rows(region)[1]
    settle(region)
    following = refused(region, choosing("c1", "c2"), reason="full", build_request=build_request)
    mapping, stored, _ = rows(region)
    assert following == stored
    assert (mapping.cell, mapping.generation, mapping.tried_cells) == ("c2", 2, ["c1"])
    assert (stored.cell, stored.generation, stored.state) == ("c2", 2, "pending")


def test_a_repeated_refusal_changes_nothing(region):
    refused(region, choosing("c2"))
    before = rows(region)
    assert refused(region, choosing("c3")) is None
    assert rows(region) == before


def test_a_refusal_by_the_last_cell_ends_in_error_with_the_reason(region):
    assert refused(region, choosing(), reason="RamFilter: 10 hosts") is None
    mapping, build_request, usage = rows(region)
    assert (mapping.cell, mapping.tried_cells) == (None, ["c1"])
    assert build_request.state == "error"
    assert build_request.fault.message == "No valid host was found. RamFilter: 10 hosts"
    assert usage is not None
    before = rows(region)
    assert refused(region, choosing("c2"), reason="again") is None
    assert rows(region) == before


def test_a_refusal_of_a_server_to_be_deleted_deletes_it(region):
    rows(region)[1].delete_requested = True
    assert refused(region, choosing("c2")) is None
    assert rows(region) == (None, None, None)
    assert [told.event_type for told in region.ledger.told] == ["instance.delete.start", "instance.delete.end"]


def test_a_refusal_without_any_build_request_is_invalid(region):
    settle(region)
    with pytest.raises(InvalidRequest):
        refused(region, choosing("c2"))
    assert rows(region)[0].cell == "c1"


def test_a_refusal_with_another_servers_build_request_is_invalid(region):
    build_request = rows(region)[1]
    settle(region)
    build_request.uuid = UUIDS[3]
    with pytest.raises(InvalidRequest):
        refused(region, choosing("c2"), build_request=build_request)


@pytest.mark.parametrize("wrong", [{"cell": "c2"}, {"generation": 2}, {"generation": 0}])
def test_a_word_about_another_place_changes_nothing(region, wrong):
    before = rows(region)
    assert not deleted(region, **wrong)
    assert refused(region, choosing("c3"), **wrong) is None
    assert rows(region) == before


def test_a_word_about_another_project_is_invalid(region):
    with pytest.raises(InvalidRequest):
        deleted(region, project_id="p2")


def test_a_deleted_server_leaves_nothing_and_a_repeat_is_fine(region):
    assert deleted(region)
    assert rows(region) == (None, None, None)
    assert not deleted(region)


def test_a_server_without_a_cell_gets_one_when_one_is_known():
    region = Decider()
    start(region, None)
    assert assign(region, choosing()).cell is None
    assert assign(region, choosing("c2")).cell == "c2"
    mapping, build_request, _ = rows(region)
    assert (mapping.cell, mapping.generation) == ("c2", 1)
    assert (build_request.cell, build_request.generation) == ("c2", 1)


def test_a_server_without_a_cell_ends_in_error_at_its_deadline():
    region = Decider()
    start(region, None)
    assert assign(region, choosing(), give_up_at_us=NOW_US) is None
    assert rows(region)[1].state == "error"
    assert rows(region)[1].fault.message.startswith("No valid host was found.")


def test_a_server_without_a_cell_that_is_to_be_deleted_goes_at_once():
    region = Decider()
    start(region, None)
    rows(region)[1].delete_requested = True
    assert assign(region, choosing("c1")) is None
    assert rows(region) == (None, None, None)
    assert [told.event_type for told in region.ledger.told] == ["instance.delete.start", "instance.delete.end"]


def test_a_cell_that_was_never_asked_may_be_replaced_under_a_higher_generation(region):
    assert assign(region, choosing("c1", "c2"), unsent_to="c1").cell == "c2"
    mapping, build_request, _ = rows(region)
    assert (mapping.cell, mapping.generation, mapping.tried_cells) == ("c2", 2, [])
    assert build_request.generation == 2


def test_a_cell_is_kept_when_there_is_no_other(region):
    assert assign(region, choosing(), unsent_to="c1", give_up_at_us=0).cell == "c1"
    assert rows(region)[0].generation == 1


def test_a_cell_that_may_have_been_asked_is_never_replaced(region):
    assert assign(region, choosing("c2"), unsent_to=None).cell == "c1"
    assert assign(region, choosing("c2"), unsent_to="c3").cell == "c1"
