"""Server groups at the root: definitions, members, and the one cell of those that are to be together."""

from dataclasses import replace as replace_settings
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.root.fakes import context, create_request
from tests.unit.conductor.root.test_role import Region
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.root.groups import Groups
from zcompute.conductor.root.settings import RootSettings
from zcompute.config import QuotaConfig
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, SERVER_GROUPS
from zcompute.objects import methods
from zcompute.objects.build_request import BUILD_ERROR
from zcompute.objects.errors import QuotaExceeded, ServerGroupNotFound
from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, POLICIES, SOFT_AFFINITY
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.groups import GroupCreateRequest, GroupListRequest, GroupRequest
from zcompute.objects.messages.quotas import QuotaRequest
from zcompute.objects.messages.region import MappingReleaseRequest

GROUP = "6f70656e-7374-4163-8b00-0000000000aa"


@pytest.fixture
def region():
    made = Region()
    made.capacity("c1")
    made.capacity("c2")
    return made


def make(region, policy=AFFINITY, uuid=GROUP, project_id="p1"):
    request = GroupCreateRequest(uuid=uuid, project_id=project_id, user_id="u", name="g", policy=policy)
    return region.call(methods.GROUP_CREATE, request).group


def show(region, uuid=GROUP, project_id="p1"):
    return region.call(methods.GROUP_GET, GroupRequest(uuid=uuid, project_id=project_id))


def create(region, count=1, operation_id="op-1", group=GROUP, project_id="p1"):
    request = create_request(count, operation_id, project_id=project_id)
    return region.call(methods.SERVERS_CREATE, replace(request, group_uuid=group, min_count=count)).uuids


def cell_of(region, uuid):
    return region.ledger.get(MAPPINGS, uuid).cell


def let_go(region, uuid, refused=False, cell=None):
    mapping, build_request = region.ledger.get(MAPPINGS, uuid), region.ledger.get(BUILD_REQUESTS, uuid)
    cell = cell or mapping.cell
    request = MappingReleaseRequest(
        uuid=uuid, project_id="p1", cell=cell, generation=mapping.generation, reason="full",
        build_request=build_request if refused else None,
    )  # fmt: skip
    method = methods.MAPPING_REFUSED if refused else methods.MAPPING_DELETED
    region.call(method, request, context(cell, "s1", "conductor"))


def test_a_group_is_made_once_shown_listed_and_deleted(region):
    group = make(region)
    assert make(region) == group
    assert (group.policy, group.project_id, group.revision) == (AFFINITY, "p1", 1)
    assert show(region).members == []
    listed = region.call(methods.GROUP_LIST, GroupListRequest(project_id="p1")).groups
    assert [view.group for view in listed] == [group]
    assert region.call(methods.GROUP_LIST, GroupListRequest(project_id="p2")).groups == []
    assert region.call(methods.GROUP_LIST, GroupListRequest(offset=1)).groups == []
    region.call(methods.GROUP_DELETE, GroupRequest(uuid=GROUP, project_id="p1"))
    with pytest.raises(ServerGroupNotFound, match="could not be found"):
        show(region)
    with pytest.raises(ServerGroupNotFound):
        region.call(methods.GROUP_DELETE, GroupRequest(uuid=GROUP, project_id="p1"))
    with pytest.raises(InvalidRequest):
        region.call(methods.GROUP_DELETE, GroupRequest(uuid=GROUP))
    with pytest.raises(InvalidRequest, match="expected one of"):
        make(region, policy="near")


def test_servers_carry_the_rule_of_their_group_and_are_its_members_until_they_are_deleted(region):
    make(region, ANTI_AFFINITY)
    (uuid,) = create(region)
    rule = region.ledger.get(BUILD_REQUESTS, uuid).spec.group
    assert (rule.uuid, rule.policy, rule.max_server_per_host) == (GROUP, ANTI_AFFINITY, 1)
    create(region, group="", operation_id="op-2")
    assert show(region).members == [uuid]
    let_go(region, uuid)
    assert show(region).members == []


@pytest.mark.parametrize("project_id", ["p1", "p2"])
def test_a_group_that_the_project_does_not_have_is_refused_and_nothing_written(region, project_id):
    if project_id == "p2":
        make(region)
    with pytest.raises(ServerGroupNotFound):
        create(region, project_id=project_id)
    assert region.ledger.all(MAPPINGS) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_members_that_are_to_be_together_are_in_one_cell_and_the_others_in_any(region, policy):
    make(region, policy)
    cells = {cell_of(region, uuid) for number in range(3) for uuid in create(region, 2, f"op-{number}")}
    assert cells == ({"c1"} if policy in (AFFINITY, SOFT_AFFINITY) else {"c1", "c2"})
    pinned = region.ledger.get(SERVER_GROUPS, GROUP).cell
    assert pinned == ("c1" if policy in (AFFINITY, SOFT_AFFINITY) else None)


def test_a_group_stays_in_its_cell_as_long_as_it_has_members(region):
    make(region)
    (first,) = create(region)
    region.role._cells.closed = lambda: {"c1"}
    (second,) = create(region, operation_id="op-2")
    assert cell_of(region, second) is None, "it waits for c1 to be open again"
    for uuid in (first, second):
        region.ledger.get(MAPPINGS, uuid).cell = "c1"
        let_go(region, uuid)
    (third,) = create(region, operation_id="op-3")
    assert cell_of(region, third) == "c2" == region.ledger.get(SERVER_GROUPS, GROUP).cell


def test_a_refusal_sends_a_lone_member_elsewhere_and_the_group_with_it(region):
    make(region)
    (first,) = create(region)
    let_go(region, first, refused=True)
    assert cell_of(region, first) == "c2"
    assert region.ledger.get(SERVER_GROUPS, GROUP).cell == "c2"
    assert cell_of(region, create(region, operation_id="op-2")[0]) == "c2"


@pytest.mark.parametrize(("policy", "cell"), [(AFFINITY, None), (SOFT_AFFINITY, "c2"), (ANTI_AFFINITY, "c2")])
def test_a_refusal_of_one_of_several_leaves_their_cell_only_where_the_policy_allows_it(region, policy, cell):
    make(region, policy)
    first, second = create(region, 2)
    for uuid in (first, second):
        region.ledger.get(MAPPINGS, uuid).cell = "c1"
        region.ledger.get(BUILD_REQUESTS, uuid).cell = "c1"
    let_go(region, second, refused=True)
    assert cell_of(region, second) == cell
    state = region.ledger.get(BUILD_REQUESTS, second)
    if policy == AFFINITY:
        assert (state.state, state.fault.message) == (BUILD_ERROR, "No valid host was found. full")
    assert cell_of(region, first) == "c1"


def test_a_refusal_of_a_member_without_its_build_request_is_refused(region):
    make(region)
    (uuid,) = create(region)
    request = MappingReleaseRequest(uuid=uuid, project_id="p1", cell="c1", generation=1, reason="full")
    with pytest.raises(InvalidRequest, match="needs its build request"):
        region.call(methods.MAPPING_REFUSED, request, context("c1", "s1", "conductor"))


def test_members_are_limited_as_in_nova_and_a_repeat_is_not(region):
    make(region, ANTI_AFFINITY)
    region.role._groups.members_max = 5
    uuids = create(region, 2) + create(region, 2, "op-2")
    with pytest.raises(QuotaExceeded, match="Quota exceeded, too many servers in group"):
        create(region, 2, "op-3")
    region.role._groups.members_max = 4
    assert create(region, 2, "op-2") == uuids[2:]
    assert show(region).members == sorted(uuids)


def test_limits_tell_how_many_groups_there_are(region):
    make(region)
    make(region, uuid=f"{GROUP[:-2]}01")
    groups = region.call(methods.QUOTA_GET, QuotaRequest(project_id="p1")).groups
    assert (groups.groups, groups.members, groups.used) == (10, 10, 2)
    assert region.call(methods.QUOTA_DEFAULT, Empty()).groups.used == 0


def test_a_list_says_when_it_cannot_show_all(region):
    with pytest.raises(InvalidRequest, match="expected 0 to"):
        region.call(methods.GROUP_LIST, GroupListRequest(offset=10_000))
    make(region, ANTI_AFFINITY)
    create(region, 5)
    settings = region.role._groups._settings
    region.role._groups._settings = replace_settings(settings, group_members_page=2, group_members_max=5)
    assert len(show(region).members) == 5
    region.role._groups._settings = replace_settings(settings, group_members_page=2, group_members_max=4)
    with pytest.raises(InvalidRequest, match="more than 4 members"):
        show(region)


def test_groups_are_limited_as_in_nova(region):
    for number in range(10):
        make(region, uuid=f"{GROUP[:-2]}{number:02d}")
    with pytest.raises(QuotaExceeded, match="Quota exceeded, too many server groups"):
        make(region)
    assert make(region, uuid=f"{GROUP[:-2]}03").uuid.endswith("03"), "a repeat finds it"
    make(region, project_id="p2")


def test_another_projects_group_is_not_found_at_an_owner_that_cannot_even_read_it():
    world = World()
    try:
        env = SimpleNamespace(ledger=world.ledger, store=world.store, config=SimpleNamespace(quota=QuotaConfig()))
        groups = Groups(env, RootSettings())
        request = GroupCreateRequest(uuid=GROUP, project_id="p1", user_id="u", name="g", policy=AFFINITY)
        groups.create(request, context())
        with pytest.raises(ServerGroupNotFound):
            groups.delete(GroupRequest(uuid=GROUP, project_id="p2"), context())
        groups.delete(GroupRequest(uuid=GROUP, project_id="p1"), context())
        assert world.database.row(SERVER_GROUPS, (GROUP,)) is None
    finally:
        world.close()
