"""A clean region has no finding; each single corruption is found, on the very server or host; motion excuses."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from tests.unit.cli.audit.regions import CREATED_US, NOW_US, REGIONS, Plan, clean_region, host_name, line, uuid_of
from zcompute.cli import audit_kinds as kinds
from zcompute.cli.audit_compare import compare, expected_api
from zcompute.cli.audit_motion import moving, stood_still
from zcompute.cli.audit_snapshot import ApiServer, HostDomains
from zcompute.compute.virt.fake_log import OP_DESTROY, OP_SPAWN
from zcompute.db.store import ToldRow
from zcompute.objects.build_request import BUILD_PENDING, InstanceMapping, Usage
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.command import VERB_ACTIVATE, VERB_REOPEN, VERB_SEND
from zcompute.objects.cross_move import CrossMove
from zcompute.objects.flavor import Amounts
from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, SOFT_ANTI_AFFINITY, GroupPlacement, GroupRule
from zcompute.objects.history import InstanceAction
from zcompute.objects.host import Claim
from zcompute.objects.image import IMAGE_SAVING, Image
from zcompute.objects.instance import LEAVING, POWER_RUNNING, POWER_SHUTDOWN, Move
from zcompute.objects.notification import NotifierCursor
from zcompute.objects.task import TASK_PARKED, ClaimName, Task, TaskBody

BRISK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ACTIVE, IN_ERROR, DELETED, STRANGER = uuid_of(0), uuid_of(1), uuid_of(2), uuid_of(999)
GROUP = "00000000-0000-4000-8000-0000000000aa"
HOST, OTHER = host_name("c1", 0), host_name("c1", 1)


def running_nowhere(region):
    region.hosts[HOST].lines.append(line(OP_DESTROY, ACTIVE, 1))


def running_twice(region):
    region.hosts[OTHER].lines.append(line(OP_SPAWN, ACTIVE, 9))


def running_elsewhere(region):
    region.instance(ACTIVE).host = OTHER
    move_claim(region)


def move_claim(region):
    cell = region.cells["c1"]
    claim = next(claim for claim in cell.claims if claim.instance_uuid == ACTIVE)
    claim.host = OTHER
    for host in cell.hosts:
        sign = {HOST: -1, OTHER: 1}.get(host.name, 0)
        moved = claim.amounts if sign > 0 else Amounts().minus(claim.amounts)
        if sign:
            host.used, host.instances = host.used.plus(moved), host.instances + sign


def spawned_again(region):
    region.hosts[HOST].lines.append(line(OP_DESTROY, ACTIVE, 1))
    region.hosts[HOST].lines.append(line(OP_SPAWN, ACTIVE, 1))


def spawned_more_often_than_moved(region):
    region.hosts[OTHER].lines.append(line(OP_SPAWN, ACTIVE, 7))
    region.hosts[OTHER].lines.append(line(OP_DESTROY, ACTIVE, 7))


def a_deleted_server_still_runs(region):
    region.hosts[HOST].lines.append(line(OP_SPAWN, DELETED, 1))


def a_stranger_runs(region):
    region.hosts[HOST].lines.append(line(OP_SPAWN, STRANGER, 1))


def a_log_is_torn(region):
    region.hosts[HOST] = HostDomains(region.hosts[HOST].lines, 1)


def mapped_without_server(region):
    region.root.mappings.append(InstanceMapping(uuid=STRANGER, project_id="p", cell="c1"))
    region.root.usages.append(Usage(uuid=STRANGER, project_id="p", cores=1, ram_mb=512))


def mapping_of(region, uuid):
    return next(mapping for mapping in region.root.mappings if mapping.uuid == uuid)


def mapping_lost(region):
    region.root.mappings.remove(mapping_of(region, ACTIVE))


def mapped_to_another_cell(region):
    mapping_of(region, ACTIVE).cell = "c2"


def mapped_under_another_generation(region):
    mapping_of(region, ACTIVE).generation = 2


def build_request_without_mapping(region):
    region.root.mappings.remove(mapping_of(region, IN_ERROR))


def usage_of(region, uuid):
    return next(usage for usage in region.root.usages if usage.uuid == uuid)


def usage_lost(region):
    region.root.usages.remove(usage_of(region, ACTIVE))


def usage_left(region):
    region.root.usages.append(Usage(uuid=DELETED, project_id="p", cores=1, ram_mb=512))


def usage_changed(region):
    usage_of(region, ACTIVE).cores += 1


def told_another_total(region):
    region.used["p"] = region.used["p"].times(2)


def claim_left(region):
    region.cells["c1"].claims.append(
        Claim(
            instance_uuid=STRANGER,
            task_id="t",
            attempt=1,
            host=HOST,
            amounts=Amounts(),
            created_at_us=CREATED_US,
        )
    )
    region.cells["c1"].hosts[0].instances += 1


def claim_lost(region):
    cell = region.cells["c1"]
    claim = next(claim for claim in cell.claims if claim.instance_uuid == ACTIVE)
    cell.claims.remove(claim)
    cell.hosts[0].used = cell.hosts[0].used.minus(claim.amounts)
    cell.hosts[0].instances -= 1


def used_too_high(region):
    region.cells["c1"].hosts[0].used = region.cells["c1"].hosts[0].used.plus(Amounts(memory_mb=1))


def claims_on_no_host(region):
    del region.cells["c1"].hosts[0]


def task_state_without_a_task(region):
    region.instance(ACTIVE).task_state = "deleting"


def task_without_a_server(region):
    region.cells["c1"].tasks.append(task(STRANGER, state=TASK_PARKED))


def task_id_left(region):
    region.instance(ACTIVE).task_id = "gone"


def task_parked(region):
    region.cells["c1"].tasks.append(task(ACTIVE, state=TASK_PARKED))


def task_past_its_deadline(region):
    region.cells["c1"].tasks.append(task(ACTIVE, deadline_at_us=NOW_US - 60 * 10**6))


def task_without_an_action(region):
    region.cells["c1"].tasks.append(task(ACTIVE, created_at_us=NOW_US - 6 * 10**6))


def told_with_a_hole(region):
    region.cells["c1"].told.append(ToldRow(17, last_n=9, first=4, last=9, kept=5))


def told_without_its_end(region):
    region.cells["c1"].told.append(ToldRow(17, last_n=9, first=4, last=8, kept=5))


def told_more_than_counted(region):
    region.root.told.append(ToldRow(17, last_n=9, first=4, last=10, kept=7))


def cursor_beyond(region):
    region.cells["c1"].told.append(ToldRow(17, last_n=9, first=1, last=9, kept=9))
    region.cells["c1"].cursors.append(NotifierCursor(partition_id=17, notifier="hook", n=10))


def cursor_of_nothing(region):
    region.root.cursors.append(NotifierCursor(partition_id=17, notifier="hook", n=1))


def action_without_a_task(region):
    region.cells["c1"].actions.append(InstanceAction(instance_uuid=ACTIVE, operation_id="op", action="create"))


def outbox_row_too_old(region):
    region.cells["c1"].outbox.append(outbox(ACTIVE, NOW_US - 700 * 10**6))


def build_request_too_old(region):
    request = region.root.build_requests[0]
    request.state, request.cell, request.created_at_us = BUILD_PENDING, "c1", NOW_US - 700 * 10**6


def image_nobody_makes(region):
    old_us = NOW_US - 1600 * 10**6
    made = {"project_id": "p", "name": "i", "status": IMAGE_SAVING, "server_uuid": ACTIVE}
    region.root.images.append(Image(id=STRANGER, updated_at_us=old_us, **made))
    region.root.images.append(Image(id=IN_ERROR, updated_at_us=NOW_US - 1200 * 10**6, **made))


def api_leaves_one_out(region):
    del region.api[ACTIVE]


def api_shows_one_too_many(region):
    region.api[DELETED] = ApiServer(DELETED, "ACTIVE", HOST)


def api_shows_another_status(region):
    region.api[ACTIVE] = ApiServer(ACTIVE, "ERROR", HOST)


def api_shows_another_host(region):
    region.api[ACTIVE] = ApiServer(ACTIVE, "ACTIVE", OTHER)


def observed_wrongly(region):
    region.instance(ACTIVE).power_state = 4


def task(uuid, **fields):
    made = {"created_at_us": NOW_US, **fields}
    return Task(id=f"task-{uuid}", instance_uuid=uuid, kind="build", step="claim", **made)


def outbox(uuid, created_at_us=NOW_US):
    return OutboxEntry(instance_uuid=uuid, project_id="p", kind="deleted", generation=1, created_at_us=created_at_us)


def join_group(region, uuid=ACTIVE, policy=ANTI_AFFINITY, per_host=1, placed=True):
    instance = region.instance(uuid)
    rule = GroupRule(uuid=GROUP, policy=policy, max_server_per_host=per_host)
    instance.spec = msgspec.structs.replace(instance.spec, group=rule)
    mapping_of(region, uuid).group_uuid = GROUP
    if placed:
        task_id, _, attempt = instance.claim.rpartition("/")
        region.cells["c1"].placements.append(
            GroupPlacement(
                group_uuid=GROUP, instance_uuid=uuid, task_id=task_id, attempt=int(attempt), host=instance.host
            )
        )


def place_left(region):
    region.cells["c1"].placements.append(
        GroupPlacement(group_uuid=GROUP, instance_uuid=STRANGER, task_id="t", attempt=1, host=HOST)
    )


def place_lost(region):
    join_group(region, placed=False)


def more_on_a_host_than_the_group_allows(region):
    join_group(region, per_host=0)


def mapped_as_of_a_group(region):
    mapping_of(region, ACTIVE).group_uuid = GROUP


def a_copy_for_no_move(region):
    region.instance(ACTIVE).crossing = LEAVING


def a_copy_of_an_older_generation(region):
    next(mapping for mapping in region.root.mappings if mapping.uuid == ACTIVE).generation += 1


CORRUPTIONS = [
    (place_left, kinds.PLACEMENT_LEAKED, STRANGER),
    (place_lost, kinds.PLACEMENT_MISSING, ACTIVE),
    (more_on_a_host_than_the_group_allows, kinds.GROUP_VIOLATED, GROUP),
    (mapped_as_of_a_group, kinds.GROUP_MEMBER_WRONG, ACTIVE),
    (a_copy_for_no_move, kinds.CROSSING_WITHOUT_MOVE, ACTIVE),
    (a_copy_of_an_older_generation, kinds.SERVER_WITHOUT_MAPPING, ACTIVE),
    (running_nowhere, kinds.SERVER_ON_NO_HOST, ACTIVE),
    (running_twice, kinds.SERVER_ON_SEVERAL_HOSTS, ACTIVE),
    (running_twice, kinds.ORPHAN_DOMAIN, ACTIVE),
    (running_elsewhere, kinds.ORPHAN_DOMAIN, ACTIVE),
    (spawned_again, kinds.SPAWNED_TWICE, ACTIVE),
    (spawned_more_often_than_moved, kinds.SPAWNED_TWICE, ACTIVE),
    (a_deleted_server_still_runs, kinds.ORPHAN_DOMAIN, DELETED),
    (a_stranger_runs, kinds.ORPHAN_DOMAIN, STRANGER),
    (a_log_is_torn, kinds.DOMAIN_LOG_UNREADABLE, HOST),
    (mapped_without_server, kinds.MAPPING_WITHOUT_SERVER, STRANGER),
    (mapping_lost, kinds.SERVER_WITHOUT_MAPPING, ACTIVE),
    (mapped_to_another_cell, kinds.SERVER_WITHOUT_MAPPING, ACTIVE),
    (mapped_to_another_cell, kinds.MAPPING_WITHOUT_SERVER, ACTIVE),
    (mapped_under_another_generation, kinds.SERVER_WITHOUT_MAPPING, ACTIVE),
    (build_request_without_mapping, kinds.SERVER_WITHOUT_MAPPING, IN_ERROR),
    (usage_lost, kinds.SERVER_WITHOUT_USAGE, ACTIVE),
    (usage_left, kinds.USAGE_WITHOUT_SERVER, DELETED),
    (usage_changed, kinds.USAGE_WRONG, ACTIVE),
    (told_another_total, kinds.QUOTA_TOTAL_WRONG, "p"),
    (claim_left, kinds.CLAIM_LEAKED, STRANGER),
    (claim_lost, kinds.CLAIM_MISSING, ACTIVE),
    (used_too_high, kinds.HOST_USED_WRONG, HOST),
    (claims_on_no_host, kinds.HOST_USED_WRONG, HOST),
    (task_state_without_a_task, kinds.TASK_STUCK, ACTIVE),
    (task_without_a_server, kinds.TASK_STUCK, STRANGER),
    (task_id_left, kinds.TASK_STUCK, ACTIVE),
    (task_parked, kinds.TASK_STUCK, ACTIVE),
    (task_past_its_deadline, kinds.TASK_STUCK, ACTIVE),
    (action_without_a_task, kinds.ACTION_STUCK, ACTIVE),
    (task_without_an_action, kinds.TASK_WITHOUT_ACTION, ACTIVE),
    (told_with_a_hole, kinds.NOTIFICATIONS_MISSING, "c1/17"),
    (told_without_its_end, kinds.NOTIFICATIONS_MISSING, "c1/17"),
    (told_more_than_counted, kinds.NOTIFICATIONS_MISSING, "root/17"),
    (cursor_beyond, kinds.CURSOR_BEYOND, "c1/17"),
    (cursor_of_nothing, kinds.CURSOR_BEYOND, "root/17"),
    (outbox_row_too_old, kinds.OUTBOX_STUCK, ACTIVE),
    (build_request_too_old, kinds.BUILD_REQUEST_STUCK, IN_ERROR),
    (image_nobody_makes, kinds.IMAGE_STUCK, STRANGER),
    (api_leaves_one_out, kinds.API_DIFFERS, ACTIVE),
    (api_shows_one_too_many, kinds.API_DIFFERS, DELETED),
    (api_shows_another_status, kinds.API_DIFFERS, ACTIVE),
    (api_shows_another_host, kinds.API_DIFFERS, ACTIVE),
    (observed_wrongly, kinds.OBSERVED_DIFFERS, ACTIVE),
]


@BRISK
@given(REGIONS)
def test_a_clean_region_has_no_finding_and_nothing_in_motion(region):
    assert compare(region.snapshot()) == []
    assert moving(region.snapshot()) == []


@pytest.mark.parametrize(
    ("corrupt", "kind", "subject"), CORRUPTIONS, ids=[f"{c.__name__}-{kind}" for c, kind, _ in CORRUPTIONS]
)
@BRISK
@given(region=REGIONS)
def test_a_single_corruption_is_found(corrupt, kind, subject, region):
    corrupt(region)
    found = compare(region.snapshot())
    assert (kind, subject) in {(finding.kind, finding.subject) for finding in found}
    assert {finding.subject for finding in found} <= {subject, HOST, OTHER, ACTIVE, "p"}, "nothing else is accused"


def test_a_move_to_another_cell_excuses_its_copies_until_it_stands_still():
    region = clean_region([Plan("active")])
    a_copy_for_no_move(region)
    a_copy_of_an_older_generation(region)
    move = CrossMove(
        uuid=ACTIVE, project_id="p", operation_id="op", source_cell="c1", target_cell="c2", generation=2, step="leave",
        deadline_at_us=NOW_US,
    )  # fmt: skip
    region.root.cross_moves.append(move)
    assert compare(region.snapshot()) == []
    motion = moving(region.snapshot())
    assert [found.kind for found in stood_still(motion, motion, 9.0)] == [kinds.TASK_STUCK]
    move.deadline_at_us -= 601 * 10**6
    assert [found.kind for found in compare(region.snapshot())] == [kinds.TASK_STUCK]


def test_every_kind_has_a_corruption_that_shows_it():
    assert {kind for _, kind, _ in CORRUPTIONS} == set(kinds.KINDS)


@pytest.mark.parametrize(
    ("policy", "hosts", "violated"),
    [
        (ANTI_AFFINITY, (0, 1), False),
        (ANTI_AFFINITY, (0, 0), True),
        (AFFINITY, (0, 0), False),
        (AFFINITY, (0, 1), True),
        (SOFT_ANTI_AFFINITY, (0, 0), False),
    ],
)
def test_members_that_are_where_their_policy_does_not_allow_them_are_found(policy, hosts, violated):
    region = clean_region([Plan("active", host=number) for number in hosts])
    for number in range(2):
        join_group(region, uuid_of(number), policy)
    found = [(finding.kind, finding.subject) for finding in compare(region.snapshot())]
    assert found == ([(kinds.GROUP_VIOLATED, GROUP)] if violated else [])


def test_a_place_that_is_to_be_swept_soon_excuses_its_server():
    region = clean_region([Plan("active")])
    place_left(region)
    region.cells["c1"].placements[0].created_at_us = NOW_US - 1_000_000
    assert compare(region.snapshot()) == []
    assert [item.kind for item in moving(region.snapshot())] == ["placement"]


def test_what_is_told_without_a_gap_and_cursors_behind_it_are_right():
    region = clean_region([Plan("active")])
    cell = region.cells["c1"]
    cell.told.extend([ToldRow(0, last_n=0), ToldRow(1, last_n=7), ToldRow(2, last_n=9, first=4, last=9, kept=6)])
    cell.cursors.extend(NotifierCursor(partition_id=p, notifier="hook", n=n) for p, n in ((0, 0), (1, 7), (2, 3)))
    cell.tasks.append(task(ACTIVE, operation_id="op", created_at_us=NOW_US - 6 * 10**6))
    cell.actions.append(InstanceAction(instance_uuid=ACTIVE, operation_id="op", action="create"))
    assert compare(region.snapshot()) == []
    assert region.snapshot().counts()["notifications"] == 6


def moved(region) -> None:
    """The server is on OTHER, its stopped copy on HOST with its claim."""
    instance, cell = region.instance(ACTIVE), region.cells["c1"]
    former = next(claim for claim in cell.claims if claim.instance_uuid == ACTIVE)
    claim = msgspec.structs.replace(former, task_id="move", attempt=1, host=OTHER)
    cell.claims.append(claim)
    host = next(host for host in cell.hosts if host.name == OTHER)
    host.used, host.instances = host.used.plus(claim.amounts), host.instances + 1
    instance.move = Move(
        kind="migrate", former_host=HOST, former_claim=former.name, former_flavor=instance.flavor,
        former_vm_state="active", since_us=NOW_US,
    )  # fmt: skip
    instance.host, instance.claim, instance.generation = OTHER, claim.name, instance.generation + 1
    region.hosts[HOST].lines.append(with_power(VERB_SEND, POWER_SHUTDOWN))
    region.hosts[OTHER].lines.append(with_power(VERB_ACTIVATE, POWER_RUNNING))
    region.api = expected_api(region.snapshot())


def with_power(op: str, power_state: int):
    return msgspec.structs.replace(line(op, ACTIVE, 1), power_state=power_state)


def test_the_stopped_copy_of_a_move_that_waits_to_be_confirmed_is_where_it_should_be() -> None:
    region = clean_region([Plan("active")])
    moved(region)
    assert list(compare(region.snapshot())) == []
    region.hosts[HOST].lines.append(with_power(VERB_REOPEN, POWER_RUNNING))
    assert [finding.kind for finding in compare(region.snapshot())] == [kinds.SERVER_ON_SEVERAL_HOSTS]
    region.hosts[HOST].lines.append(line(OP_DESTROY, ACTIVE, 2))
    assert [finding.kind for finding in compare(region.snapshot())] == [kinds.SERVER_ON_NO_HOST]


def test_what_a_host_has_that_is_forced_down_goes_when_it_comes_back() -> None:
    region = clean_region([Plan("active")])
    region.hosts[OTHER].lines.append(line(OP_SPAWN, STRANGER, 1))
    assert [finding.kind for finding in compare(region.snapshot())] == [kinds.ORPHAN_DOMAIN]
    next(host for host in region.cells["c1"].hosts if host.name == OTHER).forced_down = True
    assert kinds.ORPHAN_DOMAIN not in [finding.kind for finding in compare(region.snapshot())]


def test_a_task_that_has_just_begun_may_miss_its_action():
    region = clean_region([Plan("active")])
    region.cells["c1"].tasks.append(task(ACTIVE, created_at_us=NOW_US - 4 * 10**6))
    assert compare(region.snapshot()) == []


def test_a_server_with_a_running_task_is_not_judged_nor_are_the_hosts_it_names():
    region = clean_region([Plan("active"), Plan("error"), Plan("deleted")])
    running_nowhere(region)
    used_too_high(region)
    assert len(compare(region.snapshot())) == 2
    body = TaskBody(host=HOST, release=[ClaimName(host=OTHER, task_id="t", attempt=1)])
    region.cells["c1"].tasks.append(task(ACTIVE, body=body))
    assert compare(region.snapshot()) == []
    assert moving(region.snapshot())[0].hosts == (HOST, OTHER)


def test_a_server_whose_word_to_the_root_is_under_way_is_not_judged():
    region = clean_region([Plan("active")])
    mapping_lost(region)
    assert compare(region.snapshot())
    region.cells["c1"].outbox.append(outbox(ACTIVE))
    assert compare(region.snapshot()) == []


def test_a_fresh_claim_without_a_task_waits_for_the_sweeper():
    region = clean_region([Plan("active")])
    claim_left(region)
    region.cells["c1"].claims[-1].created_at_us = NOW_US - 5 * 10**6
    assert compare(region.snapshot()) == []
    assert [item.kind for item in moving(region.snapshot())] == ["claim"]


def test_a_claim_of_a_running_task_is_not_leaked():
    region = clean_region([])
    claim_left(region)
    region.cells["c1"].tasks.append(
        Task(id="t", instance_uuid=STRANGER, kind="build", step="claim", attempt=1, body=TaskBody(host=HOST))
    )
    assert kinds.CLAIM_LEAKED not in {finding.kind for finding in compare(region.snapshot())}


def test_what_makes_progress_is_not_stuck():
    region = clean_region([Plan("active")])
    region.cells["c1"].tasks.append(task(ACTIVE))
    first = moving(region.snapshot())
    assert [finding.kind for finding in stood_still(first, first, 10.0)] == [kinds.TASK_STUCK]
    region.cells["c1"].tasks[0].revision += 1
    assert stood_still(first, moving(region.snapshot()), 10.0) == []


def test_an_image_is_awaited_as_long_as_its_server_has_a_task():
    region = clean_region([Plan("active")])
    image_nobody_makes(region)
    region.cells["c1"].tasks.append(task(ACTIVE))
    assert kinds.IMAGE_STUCK not in {finding.kind for finding in compare(region.snapshot())}
