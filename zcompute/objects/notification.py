"""What is told to the outside: notifications, each under (cell, partition, n), and how far notifiers have come.

A notification is written in the transaction of the change that it tells of. ``n`` is given by the partition's owner,
without gaps, in the order of the partition's commits; a cursor is a vector of n by partition.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.partition import PARTITIONS

PRIORITY_INFO = "INFO"
PRIORITY_ERROR = "ERROR"

_STORED = msgspec.msgpack.Decoder(tuple[str, int, int, dict[str, Any]])


class Notification(VersionedObject):
    """One event as Nova's versioned notifications have it. ``payload`` is a packed object of its own version
    (zcompute.objects.notification_payloads); publisher and time are filled in by the ledger.

    ``truncated``: the payload was over the limit of a notification and is left out.
    """

    VERSION: ClassVar[tuple[int, int]] = (1, 0)

    event_type: str
    publisher_id: str = ""
    priority: str = PRIORITY_INFO
    created_at_us: int = 0
    request_id: str = ""
    user_id: str = ""
    project_id: str = ""
    instance_uuid: str = ""
    payload: bytes = b""
    truncated: bool = False


class StoredNotification(VersionedObject):
    """A notification's row. ``body`` is the packed Notification, as it goes to every notifier."""

    partition_id: int
    n: int
    created_at_us: int
    event_type: str
    instance_uuid: str = ""
    body: bytes = b""


class NotifierCursor(VersionedObject):
    """The last n of a partition that a notifier's sink has taken."""

    partition_id: int
    notifier: str
    n: int = 0
    updated_at_us: int = 0
    revision: int = 1


class UsageAudit(VersionedObject):
    """How far ``instance.exists`` has come in a partition: the period's end, and the last instance told of in it."""

    partition_id: int
    period_at_us: int = 0
    after_uuid: str = ""
    revision: int = 1


def document(cell: str, partition_id: int, n: int, body: Notification) -> dict[str, Any]:
    """A notification as notifiers give it away, for JSON. (cell, partition, n) is its name: a repeat has the same."""
    return {
        "cell": cell,
        "partition": partition_id,
        "n": n,
        "event_type": body.event_type,
        "priority": body.priority,
        "publisher_id": body.publisher_id,
        "created_at_us": body.created_at_us,
        "request_id": body.request_id,
        "user_id": body.user_id,
        "project_id": body.project_id,
        "instance_uuid": body.instance_uuid,
        "payload": payload_document(body.payload),
        "truncated": body.truncated,
    }


def cursor_text(cell: str, cursor: Mapping[int, int]) -> str:
    """A vector of n by partition as one word; partitions at 0 are left out."""
    return f"{cell}/" + ",".join(f"{partition}:{n}" for partition, n in sorted(cursor.items()) if n)


def parse_cursor(text: str) -> tuple[str, dict[int, int]]:
    """The cell and the vector of a cursor's text. Raises ValueError."""
    cell, slash, vector = text.rpartition("/")
    if not slash or not cell:
        raise ValueError(f"expected a cursor CELL/PARTITION:N,PARTITION:N,..., found {text!r}")
    cursor: dict[int, int] = {}
    for item in vector.split(",") if vector else ():
        partition, _, n = item.partition(":")
        if not (partition.isdecimal() and n.isdecimal() and int(partition) < PARTITIONS):
            raise ValueError(f"expected PARTITION:N with a partition below {PARTITIONS} in a cursor, found {item!r}")
        cursor[int(partition)] = int(n)
    return cell, cursor


def payload_document(payload: bytes) -> dict[str, Any]:
    """A packed payload as a document: name, version and data, for JSON. An empty one is an empty document."""
    if not payload:
        return {}
    name, major, minor, data = _STORED.decode(payload)
    return {"name": name, "version": f"{major}.{minor}", "data": data}
