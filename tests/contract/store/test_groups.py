"""Server groups: their rows, their members by mapping, and the places of a group read as one."""

from tests.contract.store.lane_writer import LaneWriter, delete, insert, update
from tests.contract.store.samples import new_uuid
from zcompute.db.store import Store
from zcompute.db.tables import GROUP_PLACEMENTS, GROUP_STANDINGS, MAPPINGS, SERVER_GROUPS
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.group import GroupPlacement, ServerGroup


def place(group: str, host: str, member: str | None = None, attempt: int = 1) -> GroupPlacement:
    return GroupPlacement(
        group_uuid=group, instance_uuid=member or new_uuid(), task_id=new_uuid(), attempt=attempt, host=host
    )


def test_the_standing_of_a_group_is_all_its_placements(store: Store, writer: LaneWriter) -> None:
    one, two, empty = new_uuid(), new_uuid(), new_uuid()
    first, second, other = place(one, "h1"), place(one, "h2"), place(two, "h1")
    writer.commit(insert(GROUP_PLACEMENTS, first, second, other))
    found = store.fetch(GROUP_STANDINGS, [(one,), (two,), (empty,), ("größe",), (one,)])
    assert set(found) == {(one,), (two,)}
    assert sorted(found[(one,)].placements, key=lambda each: each.host) == [first, second]
    assert found[(two,)].placements == [other]
    writer.commit(delete(GROUP_PLACEMENTS, GROUP_PLACEMENTS.key_of(first)))
    assert store.fetch(GROUP_STANDINGS, [(one,)])[(one,)].placements == [second]
    assert store.fetch(GROUP_STANDINGS, []) == {}


def test_more_groups_than_a_statement_reads(store: Store, writer: LaneWriter) -> None:
    uuids = [new_uuid() for _ in range(250)]
    writer.commit(insert(GROUP_PLACEMENTS, *(place(uuid, "h1") for uuid in uuids)))
    assert len(store.fetch(GROUP_STANDINGS, [(uuid,) for uuid in uuids])) == 250


def test_a_group_is_stored_whole_and_its_members_are_found_by_their_mappings(
    root: Store, root_writer: LaneWriter
) -> None:
    group = ServerGroup(
        uuid=new_uuid(), project_id="a", user_id="u", name="größe", policy="affinity", metadata={"k": "v"}, cell="c1"
    )
    inside = InstanceMapping(uuid=new_uuid(), project_id="a", cell="c1", group_uuid=group.uuid)
    outside = InstanceMapping(uuid=new_uuid(), project_id="a", cell="c1")
    root_writer.commit(insert(SERVER_GROUPS, group), insert(MAPPINGS, inside, outside))
    assert root.fetch(SERVER_GROUPS, [(group.uuid,)]) == {(group.uuid,): group}
    assert root.scan(MAPPINGS, where={"group_uuid": group.uuid}, limit=10) == [inside]
    group.cell, group.revision = "c2", 2
    root_writer.commit(update(SERVER_GROUPS, group))
    assert root.scan(SERVER_GROUPS, where={"project_id": "a"}, limit=10) == [group]
