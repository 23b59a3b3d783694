"""The end of a run: all comes to rest, and the database is read for the checker."""

import gevent

from loadtest.chaos.check import Final, Note, Row
from loadtest.chaos.cluster import Cluster, wait_until
from zcompute.db.store import SCAN_ROWS_MAX, Store
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES, NOTIFICATIONS
from zcompute.objects.base import unpack
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.notification import Notification, StoredNotification
from zcompute.objects.notification_payloads import InstanceUpdatePayload, power_name

REST_S = 40.0
QUIET_S = 0.7
UPDATE = "instance.update"
CREATE = "create"


def rest(cluster: Cluster) -> None:
    """No agent changes anything any more, and what they owe is answered. Raises CommandError."""
    cluster.hush()
    cluster.wait_whole(REST_S)
    last = [0.0]

    def silent() -> bool:
        sizes = sum(path.stat().st_size for path in cluster.history.glob("*compute*.jsonl"))
        if sizes != last[0]:
            last[0] = sizes
            gevent.sleep(QUIET_S)
            return False
        return True

    wait_until(silent, "the agents have nothing more to say", REST_S)


def read_final(store: Store) -> Final:
    """Rows, notifications and history of the cell."""
    instances = read_all(store, INSTANCES)
    notes = [_note(row) for row in read_all(store, NOTIFICATIONS)]
    actions = [(row.instance_uuid, row.action) for row in read_all(store, INSTANCE_ACTIONS) if row.action == CREATE]
    last_n = {row.partition_id: row.last_n for row in store.read_map().partitions}
    return Final(rows={row.uuid: _row(row) for row in instances}, notes=notes, last_n=last_n, actions=actions)


def read_all(store: Store, table: object) -> list:  # type: ignore[type-arg]  # rows of whichever table
    """A whole table."""
    found: list = []  # type: ignore[type-arg]
    after = None
    while True:
        page = store.scan(table, limit=SCAN_ROWS_MAX, after=after)  # type: ignore[arg-type]
        found += page
        if len(page) < SCAN_ROWS_MAX:
            return found
        after = table.key_of(page[-1])  # type: ignore[attr-defined]


def _row(instance: Instance) -> Row:
    state = (instance.vm_state, instance.task_state, power_name(instance.power_state))
    return Row(value=instance.progress, deleted=instance.vm_state == VM_DELETED, state=state)


def _note(row: StoredNotification) -> Note:
    made = Note(row.partition_id, row.n, row.event_type, row.instance_uuid)
    if row.event_type != UPDATE:
        return made
    payload = unpack(unpack(row.body, Notification).payload, InstanceUpdatePayload)
    update = payload.state_update
    return Note(
        made.partition,
        made.n,
        made.event_type,
        made.uuid,
        (update.old_state, update.old_task_state, update.old_power_state),
        (update.state, update.new_task_state, update.power_state),
    )
