"""``instance.exists``: once a period for each instance that existed in it, whoever owns its partition.

How far a partition has come is in a row that changes in the very transactions that tell, so a page is told once.
"""

import logging

import gevent
import msgspec
from gevent.pool import Pool

from zcompute.bus.errors import BusError
from zcompute.conductor.change import Change
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.notices import instance_exists
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.db.errors import StoreError
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES, USAGE_AUDITS
from zcompute.objects.instance import ARRIVING, LEFT, Instance
from zcompute.objects.notification import UsageAudit

log = logging.getLogger(__name__)


def existed(instance: Instance, beginning_us: int, ending_us: int) -> bool:
    """Whether the instance was there at some time of the period. Of a server that goes to another cell one row counts.
    Pure."""
    if instance.crossing in (ARRIVING, LEFT):
        return False
    deleted_at_us = instance.deleted_at_us
    return instance.created_at_us < ending_us and (deleted_at_us is None or deleted_at_us >= beginning_us)


def next_period(audit: UsageAudit | None, now_us: int, period_us: int, periods_max: int) -> int | None:
    """The end of the period to be told of next, None when none is over. Pure.

    ``audit`` None: the partition was never told of; it begins with the period that is over last.
    """
    newest = now_us // period_us * period_us
    if audit is None or audit.period_at_us == 0:
        return newest
    following = audit.period_at_us + period_us
    if following > newest:
        return None
    return max(following, newest - (periods_max - 1) * period_us)


class ExistsAudit:
    """The greenlet that tells."""

    def __init__(self, ledger: Ledger, store: Store, period_s: int, settings: NotifierSettings) -> None:
        self._ledger = ledger
        self._store = store
        self._period_us = period_s * 1_000_000
        self._settings = settings
        self._done: dict[int, int] = {}  # partition: the end of the last period that is known to be told
        self._greenlet: gevent.Greenlet | None = None
        self.told = 0  # since the start
        self.skipped = 0  # periods of a partition that are not told of, since the start

    def start(self) -> None:
        """Begin, unless the period is 0."""
        if self._period_us:
            self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(min(self._settings.exists_look_s, self._period_us / 4e6))
            newest = self._ledger.now_us() // self._period_us * self._period_us
            waiting = [partition for partition in self._ledger.owned() if self._done.get(partition) != newest]
            workers = Pool(self._settings.exists_workers_max)  # their batches commit together
            try:
                for partition in waiting:
                    workers.spawn(self._tell, partition, newest)
                workers.join()
            finally:
                workers.kill(block=False)

    def _tell(self, partition: int, newest: int) -> None:
        """All that is over and not told of; other work runs between two pages, longer where there was something."""
        try:
            told = self.told
            while self.tell_period(partition):
                gevent.sleep(self._settings.exists_pause_ms / 1000 if self.told > told else 0)
                told = self.told
            self._done[partition] = newest
        except (StoreError, BusError) as error:  # lost meanwhile, or the database is away: the next round
            log.info("instance.exists not told partition=%s error=%s", partition, error)

    def tell_period(self, partition: int) -> bool:
        """One page; True when there is more to tell. Raises StoreError, NotOwner, Busy, DeadlineExceeded."""
        key = (partition,)
        audit = self._store.fetch(USAGE_AUDITS, [key]).get(key)
        ending_us = next_period(audit, self._ledger.now_us(), self._period_us, self._settings.exists_periods_max)
        if ending_us is None:
            return False
        if audit is not None and audit.period_at_us and ending_us > audit.period_at_us + self._period_us:
            log.warning("instance.exists skipped partition=%s from=%s to=%s", partition, audit.period_at_us, ending_us)
            self.skipped += (ending_us - audit.period_at_us) // self._period_us - 1
        after = "" if audit is None else audit.after_uuid
        limit = self._settings.exists_rows_max
        page = self._store.scan(INSTANCES, partitions=[partition], limit=limit, after=(after,) if after else None)
        last = page[-1].uuid if len(page) == limit else ""
        beginning_us = ending_us - self._period_us
        told = [instance for instance in page if existed(instance, beginning_us, ending_us)]

        def decide(change: Change) -> bool:
            row = change.get(USAGE_AUDITS, key)
            if row is not None and (audit is None or row.revision != audit.revision):
                return False
            for instance in told:
                change.notify(instance_exists(instance, beginning_us, ending_us, change.packed))
            fresh = UsageAudit(partition_id=partition) if row is None else row
            period_at_us = fresh.period_at_us if last else ending_us
            change.put(USAGE_AUDITS, msgspec.structs.replace(fresh, period_at_us=period_at_us, after_uuid=last))
            return True

        if self._ledger.commit(partition, [(USAGE_AUDITS, key)], decide, timeout_ms=self._settings.commit_ms_max):
            self.told += len(told)
        return True
