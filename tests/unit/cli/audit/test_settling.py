"""When the audit is satisfied, when it looks again, and what counts in the end."""

from tests.unit.cli.audit.regions import NOW_US, Plan, clean_region, uuid_of
from tests.unit.cli.audit.test_compare import outbox, running_nowhere, task
from zcompute.cli import audit_kinds as kinds
from zcompute.cli.audit_settling import settle

ACTIVE = uuid_of(0)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def run(*regions, settle_s=10.0):
    """The regions as the snapshots show them, the last one for ever."""
    clock = Clock()
    left = list(regions)
    report = settle(
        lambda: (left.pop(0) if len(left) > 1 else left[0]).snapshot(), clock, clock.sleep, settle_s, interval_s=2.0
    )
    return report, clock.now


def clean():
    return clean_region([Plan("active")])


def with_task(revision=1):
    region = clean()
    region.cells["c1"].tasks.append(task(ACTIVE, revision=revision))
    return region


def broken():
    region = clean()
    running_nowhere(region)
    return region


def test_a_region_at_rest_needs_one_snapshot():
    report, took_s = run(clean())
    assert (report.holds, report.snapshots, took_s) == (True, 1, 0.0)
    assert report.counts["servers"] == 1


def test_a_finding_counts_only_if_the_next_snapshot_has_it_too():
    report, _ = run(broken(), clean())
    assert report.holds
    report, took_s = run(broken(), broken())
    assert [finding.kind for finding in report.findings] == [kinds.SERVER_ON_NO_HOST]
    assert (report.snapshots, took_s) == (2, 2.0)


def test_what_is_in_motion_is_waited_for():
    report, took_s = run(with_task(1), with_task(2), clean())
    assert (report.holds, took_s) == (True, 4.0)


def test_what_breaks_while_something_moves_is_confirmed_before_it_counts():
    report, _ = run(with_task(1), broken(), broken())
    assert not report.holds


def test_what_moves_without_progress_for_the_whole_time_is_stuck():
    report, took_s = run(with_task())
    assert [finding.kind for finding in report.findings] == [kinds.TASK_STUCK]
    assert report.in_motion == []
    assert took_s == 10.0


def test_what_still_moves_at_the_end_with_progress_is_named_and_not_judged():
    report, took_s = run(*(with_task(revision) for revision in range(20)))
    assert report.holds
    assert [item.uuid for item in report.in_motion] == [ACTIVE]
    assert took_s == 10.0


def test_an_undelivered_outbox_row_is_stuck():
    region = clean()
    region.cells["c2"].outbox.append(outbox(ACTIVE))
    report, _ = run(region)
    assert [finding.kind for finding in report.findings] == [kinds.OUTBOX_STUCK]


def test_a_finding_whose_detail_grows_older_is_the_same_finding():
    regions = []
    for age_s in (700, 702):
        region = clean()
        region.cells["c1"].outbox.append(outbox(ACTIVE, NOW_US - age_s * 10**6))
        regions.append(region)
    report, _ = run(*regions, settle_s=2.0)
    assert [finding.kind for finding in report.findings] == [kinds.OUTBOX_STUCK]


def test_even_without_time_to_settle_a_finding_is_confirmed():
    report, _ = run(broken(), settle_s=0.0)
    assert report.snapshots == 2
    assert not report.holds
