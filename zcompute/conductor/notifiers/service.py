"""All ways out of one cell's notifications, put together for an incarnation."""

import logging
from collections.abc import Iterable
from typing import Any

from zcompute.bus.errors import InvalidRequest, Unavailable
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.notifiers import log_sink, webhook
from zcompute.conductor.notifiers.exists import ExistsAudit
from zcompute.conductor.notifiers.feed import Feed
from zcompute.conductor.notifiers.measures import measures_of
from zcompute.conductor.notifiers.notifier import Notifier
from zcompute.conductor.notifiers.retention import Retention
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.conductor.notifiers.sink import OpenSink, open_sink
from zcompute.config import ConfigError, NotificationsConfig, NotifierConfig
from zcompute.db.errors import StoreError
from zcompute.db.tables import NOTIFICATIONS
from zcompute.measure import Measure
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import (
    NotificationHeadsReply,
    NotificationsReply,
    NotificationsRequest,
    NumberedBody,
)
from zcompute.objects.methods import NOTIFICATION_HEADS, NOTIFICATION_READ
from zcompute.objects.partition import PARTITIONS

log = logging.getLogger(__name__)

BUILT_IN: dict[str, OpenSink] = {"log": log_sink.open_sink, "webhook": webhook.open_sink}


def check_notifiers(config: NotificationsConfig) -> None:
    """Before a conductor begins. Raises ConfigError for names that are not unique, and for sinks of ours that do not
    open: that is a mistake in the configuration. A plug-in is refused when it is needed, the rest runs."""
    names = [each.name for each in config.notifiers]
    if len(set(names)) < len(names):
        raise ConfigError(f"[[notifications.notifiers]]: expected names that are unique, found {', '.join(names)}")
    for each in config.notifiers:
        if each.kind in BUILT_IN:
            open_sink(each, BUILT_IN).close()


class Notifications:
    """Streams, notifiers, retention and the usage audit. A notifier that cannot be opened is ``refused`` by name, and
    its cursors stay where they are. The root cell tells no ``usage``: it has no instances."""

    def __init__(
        self,
        env: ConductorEnv,
        config: NotificationsConfig,
        settings: NotifierSettings | None = None,
        *,
        usage: bool = True,
    ) -> None:
        self._env = env
        self._settings = settings or NotifierSettings()
        self._feed = Feed(env.endpoint, env.ledger, env.store, env.cell, self._settings)
        self._notifiers: list[Notifier] = []
        self.refused: list[str] = []
        for each in config.notifiers:
            self._open(each)
        self._retention = Retention(env.ledger, env.store, config, self._settings)
        period_s = config.exists_s if usage else 0
        self._exists = ExistsAudit(env.ledger, env.store, period_s, self._settings)

    def _open(self, config: NotifierConfig) -> None:
        env = self._env
        try:
            sink = open_sink(config, BUILT_IN)
        except ConfigError as error:
            log.error("notifier refused notifier=%s kind=%s error=%s", config.name, config.kind, error)
            self.refused.append(config.name)
            return
        self._notifiers.append(
            Notifier(config.name, sink, env.cell, env.ledger, self._feed, self._settings, config.batch_max)
        )

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Interface ``notification``."""
        return [(NOTIFICATION_HEADS, self.heads), (NOTIFICATION_READ, self.read)]

    def start(self) -> None:
        """Begin with what is gained from now on."""
        for notifier in self._notifiers:
            self._feed.on_told(notifier.told)
        self._feed.start()
        self._retention.start()
        self._exists.start()

    def stop(self) -> None:
        """End."""
        self._exists.stop()
        self._retention.stop()
        for notifier in self._notifiers:
            notifier.stop()
        self._feed.stop()

    def gained(self, partitions: Iterable[int]) -> None:
        """Publish these, and go on with their notifiers."""
        owned = self._feed.gained(partitions)
        for notifier in self._notifiers:
            notifier.gained(owned)

    def lost(self, partitions: list[int]) -> None:
        """Others do that now."""
        for notifier in self._notifiers:
            notifier.lost(partitions)
        self._feed.lost(partitions)

    def measures(self) -> Iterable[Measure]:
        """For the metrics, from memory alone."""
        return measures_of(self._feed, self._notifiers, self.refused, self._retention, self._exists)

    # -- handlers ---------------------------------------------------------------------------------------------------

    def heads(self, request: Empty, context: Any) -> NotificationHeadsReply:
        """The present end of every partition, read at the primary. Raises Unavailable."""
        return NotificationHeadsReply(cell=self._env.cell, last_n=self._last_n())

    def read(self, request: NotificationsRequest, context: Any) -> NotificationsReply:
        """A page out of the table. Raises Unavailable, InvalidRequest."""
        partition = request.partition
        if not 0 <= partition < PARTITIONS:
            raise InvalidRequest(f"expected a partition of 0 to {PARTITIONS - 1}, found {partition}", field="partition")
        limit = max(1, min(request.limit, self._settings.page_rows_max))
        after = (partition, max(0, request.after_n))
        last_n = -1
        rows = self._scan(partition, limit, after)
        if not rows:  # before it can be said that all are gone, the end must be known from before the look
            last_n = self._last_n()[partition]
            rows = self._scan(partition, limit, after)
        found: list[NumberedBody] = []
        size = 0
        for row in rows:
            if found and size + len(row.body) > self._settings.page_bytes_max:
                break
            size += len(row.body)
            found.append(NumberedBody(n=row.n, body=row.body))
        return NotificationsReply(cell=self._env.cell, last_n=last_n, rows=found)

    def _scan(self, partition: int, limit: int, after: tuple[int, int]) -> list[Any]:
        try:
            return list(self._env.store.scan(NOTIFICATIONS, partitions=[partition], limit=limit, after=after))
        except StoreError as error:
            raise _away(error) from error

    def _last_n(self) -> list[int]:
        try:
            rows = self._env.store.read_map().partitions
        except StoreError as error:
            raise _away(error) from error
        last_n = [0] * PARTITIONS
        for row in rows:
            last_n[row.partition_id] = row.last_n
        return last_n


def _away(error: StoreError) -> Unavailable:
    log.warning("notifications not read error=%s: %s", type(error).__name__, error)
    return Unavailable("the database of the cell does not answer now: try again")
