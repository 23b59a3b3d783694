"""What of one server's books is wrong, and that a repair is made only of what has not moved."""

import pytest
from msgspec.structs import replace

from tests.unit.conductor.root.fakes import NOW_US, TINY, UUIDS, Decider
from zcompute.conductor.root import reconciling as kinds
from zcompute.conductor.root.intake import server_keys
from zcompute.conductor.root.reconciling import Books, books_of, judge, repair
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, PROJECT_USAGES, USAGES
from zcompute.objects.build_request import BuildRequest, InstanceMapping, Usage
from zcompute.objects.instance import ServerSpec
from zcompute.objects.messages.quotas import Standing
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount, ProjectUsage

UUID = UUIDS[0]
HOME = partition_of("p1")
USAGE = Usage(uuid=UUID, project_id="p1", cores=1, ram_mb=512)
MAPPING = InstanceMapping(uuid=UUID, project_id="p1", cell="c1", generation=2)
REQUEST = BuildRequest(
    uuid=UUID, project_id="p1", user_id="u", name="n", flavor=TINY, spec=ServerSpec(), operation_id="op", generation=2
)
LIVING = Standing(uuid=UUID, generation=2, cores=1, ram_mb=512)
DELETED = replace(LIVING, deleted=True)


def books(usage=USAGE, mapping=MAPPING, build_request=None):
    return Books(UUID, usage, mapping, build_request)


@pytest.mark.parametrize(
    ("found", "standing", "kind"),
    [
        (books(), LIVING, None),
        (books(build_request=REQUEST), None, None),
        (books(mapping=None, build_request=REQUEST), None, None),
        (books(), replace(DELETED, owed=True), None),
        (books(usage=None), replace(LIVING, busy=True), None),
        (Books(UUID), None, None),
        (books(mapping=None), None, kinds.USAGE_WITHOUT_SERVER),
        (books(mapping=replace(MAPPING, cell=None)), None, kinds.USAGE_WITHOUT_SERVER),
        (books(usage=None, mapping=replace(MAPPING, cell=None)), None, kinds.USAGE_WITHOUT_SERVER),
        (books(usage=None), LIVING, kinds.SERVER_WITHOUT_USAGE),
        (books(usage=None, build_request=REQUEST), None, kinds.SERVER_WITHOUT_USAGE),
        (books(usage=replace(USAGE, cores=2)), LIVING, kinds.USAGE_WRONG),
        (books(usage=replace(USAGE, ram_mb=1), build_request=REQUEST), None, kinds.USAGE_WRONG),
        (books(), DELETED, kinds.SERVER_GONE),
        (books(), None, kinds.SERVER_ABSENT),
        (books(), replace(DELETED, generation=1), kinds.SERVER_ABSENT),
        (books(), replace(LIVING, generation=3), kinds.SERVER_ABSENT),
    ],
)
def test_books_are_judged(found, standing, kind):
    doubt = judge(found, standing, NOW_US)
    assert (None if doubt is None else doubt.kind) == kind


def test_a_cell_has_a_say_only_over_what_it_has_taken():
    assert books().cell == "c1"
    assert books(build_request=REQUEST).cell is None
    assert books(mapping=None).cell is None


@pytest.fixture
def root():
    return Decider()


def store(root, *rows, total=None):
    for table, row in rows:
        root.ledger.rows[(table.name, (row.uuid,))] = row
    if total is not None:
        charged = ProjectUsage(project_id="p1", instances=total.instances, cores=total.cores, ram_mb=total.ram_mb)
        root.ledger.rows[(PROJECT_USAGES.name, ("p1",))] = charged


def on_rows(root, act):
    return root(HOME, server_keys(UUID, "p1"), act)


def total_of(root):
    return root.ledger.get(PROJECT_USAGES, "p1").used


ONE = Amount(instances=1, cores=1, ram_mb=512)


def test_a_server_that_is_gone_is_let_go_with_all_its_rows(root):
    store(root, (USAGES, USAGE), (MAPPINGS, MAPPING), total=ONE)
    doubt = judge(books(), DELETED, NOW_US)
    assert on_rows(root, lambda change: repair(change, doubt))
    assert root.ledger.get(USAGES, UUID) is root.ledger.get(MAPPINGS, UUID) is None
    assert total_of(root) == Amount()
    assert not on_rows(root, lambda change: repair(change, doubt)), "once"


def test_a_server_that_nobody_pays_for_is_charged_once(root):
    store(root, (MAPPINGS, MAPPING))
    doubt = judge(books(usage=None), LIVING, NOW_US)
    assert on_rows(root, lambda change: repair(change, doubt))
    assert (root.ledger.get(USAGES, UUID).cores, total_of(root)) == (1, ONE)
    assert not on_rows(root, lambda change: repair(change, doubt))
    assert total_of(root) == ONE


def test_wrong_amounts_are_corrected_with_the_total(root):
    wrong = replace(USAGE, cores=7)
    store(root, (USAGES, wrong), (MAPPINGS, MAPPING), total=Amount(instances=1, cores=7, ram_mb=512))
    doubt = judge(books(usage=wrong), LIVING, NOW_US)
    assert on_rows(root, lambda change: repair(change, doubt))
    assert total_of(root) == ONE


@pytest.mark.parametrize(
    "moved",
    [
        (MAPPINGS, replace(MAPPING, generation=3, revision=2)),
        (USAGES, replace(USAGE, revision=2)),
        (BUILD_REQUESTS, REQUEST),
    ],
)
def test_what_has_moved_since_it_was_doubted_is_left_alone(root, moved):
    doubt = judge(books(), DELETED, NOW_US)
    store(root, (USAGES, USAGE), (MAPPINGS, MAPPING), total=ONE)
    store(root, moved)
    before = dict(root.ledger.rows)
    assert not on_rows(root, lambda change: repair(change, doubt))
    assert root.ledger.rows == before
    assert on_rows(root, lambda change: books_of(change, UUID)).mapping is not None


RAISED = replace(USAGE, cores=4, decided=7, raised_at_us=NOW_US)


@pytest.mark.parametrize(
    ("decided", "later_us", "kind"),
    [
        (7, 59_000_000, None),  # the resize may begin at any moment
        (7, 61_000_000, kinds.USAGE_WRONG),  # whoever asked is gone
        (8, 1, kinds.USAGE_WRONG),  # something else was decided: what was raised for that decision is void
        (6, 1, None),  # the cell was read before
    ],
)
def test_what_a_resize_has_raised_is_doubted_once_it_can_no_longer_begin(decided, later_us, kind):
    doubt = judge(books(usage=RAISED), replace(LIVING, decided=decided), NOW_US + later_us)
    assert (None if doubt is None else doubt.kind) == kind
    if doubt is not None:
        assert (doubt.usage.cores, doubt.usage.decided, doubt.usage.raised_at_us) == (1, decided, 0)
