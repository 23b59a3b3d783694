"""What projects use, summed by the database, and the rows that limit them."""

from tests.contract.store.lane_writer import LaneWriter, delete, insert, update
from tests.contract.store.samples import new_uuid
from zcompute.db.store import Store
from zcompute.db.tables import PROJECT_USAGES, QUOTA_CLASSES, QUOTAS, USAGES
from zcompute.objects.build_request import Usage
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount, ProjectUsage, Quota, QuotaClass


def usage(project_id: str, cores: int = 1, ram_mb: int = 512) -> Usage:
    return Usage(uuid=new_uuid(), project_id=project_id, cores=cores, ram_mb=ram_mb)


def test_a_total_is_the_sum_of_the_projects_usage_rows(root: Store, root_writer: LaneWriter) -> None:
    big = 2**31 - 1
    first = usage("a", 2, 1024)
    root_writer.commit(insert(USAGES, first, usage("a", 3, 4096), usage("b", big, 2**40), usage("b", big, 2**40)))
    keys = [("a",), ("b",), ("nobody",), ("größe",), ("a",)]
    assert root.fetch(PROJECT_USAGES, keys) == {
        ("a",): ProjectUsage(project_id="a", instances=2, cores=5, ram_mb=5120),
        ("b",): ProjectUsage(project_id="b", instances=2, cores=2 * big, ram_mb=2**41),
    }
    root_writer.commit(delete(USAGES, (first.uuid,)))
    assert root.fetch(PROJECT_USAGES, [("a",)])[("a",)].used == Amount(instances=1, cores=3, ram_mb=4096)
    assert root.fetch(PROJECT_USAGES, []) == {}


def test_more_totals_than_a_statement_sums(root: Store, root_writer: LaneWriter) -> None:
    root_writer.commit(insert(USAGES, *(usage(f"p{number}") for number in range(700))))
    found = root.fetch(PROJECT_USAGES, [(f"p{number}",) for number in range(700)])
    assert len(found) == 700
    assert {total.instances for total in found.values()} == {1}


def test_totals_come_in_pages_of_projects_in_their_order(root: Store, root_writer: LaneWriter) -> None:
    names = [f"p{number:02d}" for number in range(25)]
    root_writer.commit(insert(USAGES, *(usage(name) for name in names for _ in range(3))))
    seen: list[str] = []
    while page := root.project_usages(seen[-1] if seen else "", 7):
        assert {total.instances for total in page} == {3}
        seen += [total.project_id for total in page]
    assert seen == names
    home = partition_of("p07")
    of_partition = [total.project_id for total in root.project_usages("", 100, home)]
    assert of_partition == [name for name in names if partition_of(name) == home]


def test_limits_round_trip_with_those_that_are_not_set(root: Store, root_writer: LaneWriter) -> None:
    quota = Quota(project_id="a", instances=-1, cores=2**31 - 1)
    row = QuotaClass(ram_mb=0)
    root_writer.commit(insert(QUOTAS, quota), insert(QUOTA_CLASSES, row))
    assert root.fetch(QUOTAS, [("a",)]) == {("a",): quota}
    assert root.fetch(QUOTA_CLASSES, [("default",)]) == {("default",): row}
    changed = Quota(project_id="a", instances=None, cores=5, ram_mb=7, revision=2)
    root_writer.commit(update(QUOTAS, changed))
    assert root.fetch(QUOTAS, [("a",)]) == {("a",): changed}
