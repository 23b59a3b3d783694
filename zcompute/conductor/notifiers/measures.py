"""What the ways out of notifications measure of themselves; docs/operating/notifications.md explains each."""

from collections.abc import Iterable, Iterator

from zcompute.conductor.notifiers.exists import ExistsAudit
from zcompute.conductor.notifiers.feed import Feed
from zcompute.conductor.notifiers.notifier import Notifier
from zcompute.conductor.notifiers.retention import Retention
from zcompute.measure import Measure


def measures_of(
    feed: Feed, notifiers: Iterable[Notifier], refused: Iterable[str], retention: Retention, exists: ExistsAudit
) -> Iterator[Measure]:
    """All of one incarnation's, computed now."""
    yield Measure("notifications_told", "Committed here", feed.told, counter=True)
    yield Measure("notifications_followers", "Links that follow, each every partition", feed.followers)
    yield Measure("notifications_purged", "Rows gone by retention", retention.purged, counter=True)
    yield Measure("notifications_exists_told", "instance.exists told", exists.told, counter=True)
    about = "Periods of instance.exists not made good, one a partition"
    yield Measure("notifications_exists_skipped", about, exists.skipped, counter=True)
    about = "1: it could not be opened, and does nothing"
    for name in refused:
        yield Measure("notifier_refused", about, 1, labels={"notifier": name})
    for notifier in notifiers:
        yield Measure("notifier_refused", about, 0, labels={"notifier": notifier.name})
        yield from _of_notifier(notifier)


def _of_notifier(notifier: Notifier) -> Iterator[Measure]:
    named = {"notifier": notifier.name}
    lag = notifier.lag()
    yield Measure("notifier_sent", "Notifications taken by the sink", notifier.delivered, True, named)
    yield Measure("notifier_failures", "Deliveries that failed", notifier.failed, True, named)
    yield Measure("notifier_gaps", "Gaps told: retention overtook the cursor", notifier.gaps, True, named)
    yield Measure("notifier_partitions", "Partitions worked on here", lag.partitions, False, named)
    yield Measure("notifier_partitions_failing", "Of these, waiting after a failure", lag.failing, False, named)
    yield Measure("notifier_lag_notifications", "Committed and not taken yet", lag.notifications, False, named)
    yield Measure("notifier_lag_seconds", "Age of the oldest not taken yet", lag.seconds, False, named)
