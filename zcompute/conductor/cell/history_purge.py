"""The retention of an instance's history: an action that has ended goes with its events, one under way never does."""

import logging
from typing import Any

from zcompute.bus.errors import BusError
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.purge import Purge, PurgeSettings
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, Key, TableCodec
from zcompute.objects.history import InstanceAction, InstanceActionEvent

log = logging.getLogger(__name__)

EVENTS_MAX = 2000  # deleted by one decision, beside the actions of a page


class HistoryPurge(Purge[InstanceAction]):
    """Purges actions, each with its events in the same transaction."""

    def __init__(self, ledger: Ledger, store: Store, retention_s: float, settings: PurgeSettings) -> None:
        super().__init__(ledger, store, INSTANCE_ACTIONS, "finished_at_us", retention_s, settings)

    def _delete(self, partition: int, keys: list[Key], oldest_us: int) -> int:
        """Where there are more events than EVENTS_MAX, the actions stay until the next round. Raises StoreError."""
        where = {"instance_uuid": sorted({key[0] for key in keys}), "operation_id": sorted({key[1] for key in keys})}
        page = self._store.scan(INSTANCE_ACTION_EVENTS, partitions=[partition], where=where, limit=EVENTS_MAX)
        wanted = set(keys)
        events = [event for event in page if _action_of(event) in wanted]
        complete = len(page) < EVENTS_MAX

        def decide(change: Change) -> int:
            expired = {key for key in keys if self._expired(change, key, oldest_us)}
            gone = [event for event in events if _action_of(event) in expired]
            for event in gone:
                change.delete(INSTANCE_ACTION_EVENTS, INSTANCE_ACTION_EVENTS.key_of(event))
            if complete:
                for key in expired:
                    change.delete(INSTANCE_ACTIONS, key)
            return len(expired) if complete else len(gone)

        named: list[tuple[TableCodec[Any], Key]] = [(INSTANCE_ACTIONS, key) for key in keys]
        named += [(INSTANCE_ACTION_EVENTS, INSTANCE_ACTION_EVENTS.key_of(event)) for event in events]
        try:
            return self._ledger.commit(partition, named, decide, timeout_ms=self._settings.commit_ms_max)
        except BusError as error:  # lost, or busy: the next round finds what is left
            log.info("history not purged partition=%s error=%s", partition, error)
            return 0


def _action_of(event: InstanceActionEvent) -> Key:
    return (event.instance_uuid, event.operation_id)


def history_purge(env: ConductorEnv) -> HistoryPurge:
    """As it is configured."""
    config = env.config.conductor
    settings = PurgeSettings(round_s=config.purge_every_s)
    return HistoryPurge(env.ledger, env.store, config.history_retention_hours * 3600, settings)
