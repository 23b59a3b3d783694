"""How the rivals write: one update a transaction."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

import pymysql

from loadtest.ledger.world import CELL, history_of
from zcompute.conductor.cell.hosts import begin_host
from zcompute.conductor.cell.observations import judge_observation
from zcompute.conductor.notices import instance_update
from zcompute.db.tables import HOSTS, INSTANCE_ACTION_EVENTS, INSTANCES
from zcompute.db.url import MariaDbTarget
from zcompute.objects.base import pack
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.messages.hosts import HostBeginRequest
from zcompute.objects.notification import Notification
from zcompute.objects.partition import partition_of
from zcompute.objects.report import VERDICT_APPLIED, Observation

PUBLISHER = f"conductor:{CELL}"


class Writer(Protocol):
    """One worker's connection."""

    def __init__(self, target: MariaDbTarget) -> None: ...

    def write(self, body: Observation, epoch: int, seq: int) -> str:
        """Commit one observation; the verdict."""

    def close(self) -> None:
        """Close the connection."""


def connect(target: MariaDbTarget, *, autocommit: bool) -> "pymysql.Connection[Any]":
    """A connection as PyMySQL's users open it."""
    return pymysql.connect(
        unix_socket=target.unix_socket,
        user=target.user,
        password=target.password,
        database=target.database,
        charset="utf8mb4",
        autocommit=autocommit,
        ssl_disabled=True,
        init_command="SET SESSION tx_isolation='READ-COMMITTED'",
    )


def begin_epoch(target: MariaDbTarget, request: HostBeginRequest) -> int:
    """The host's next epoch, committed."""
    connection = connect(target, autocommit=True)
    try:
        with connection.cursor() as cursor:
            name = request.inventory.name
            cursor.execute("UPDATE hosts SET agent_epoch = agent_epoch + 1 WHERE name = %s", (name,))
            if not cursor.rowcount:
                host = begin_host(None, request.inventory, request.service_id, now_us())
                row = HOSTS.to_row(host, partition_of(name))
                cursor.execute(insert_text(HOSTS.name, HOSTS.columns), row)
            cursor.execute("SELECT agent_epoch FROM hosts WHERE name = %s", (name,))
            found = cursor.fetchone()
            return int(found[0]) if found else 0
    finally:
        connection.close()


def now_us() -> int:
    """UTC microseconds."""
    return time.time_ns() // 1000


def insert_text(table: str, columns: tuple[str, ...]) -> str:
    """INSERT with placeholders."""
    return " ".join(("INSERT INTO", table, "(", ",".join(columns), ") VALUES (", ",".join(["%s"] * len(columns)), ")"))


def told(former: Instance, image: Instance) -> tuple[Notification, bytes]:
    """The notification of a transition, and its stored form."""
    note = instance_update(former, image, "")
    if note is None:
        raise RuntimeError(f"instance {image.uuid}: expected a transition, found none")
    note.created_at_us, note.publisher_id = image.updated_at_us, PUBLISHER
    return note, pack(note)


class SingleWriter:
    """Raw PyMySQL."""

    UNCHANGED = (
        "UPDATE instances SET progress = %s, agent_epoch = %s, observed_seq = %s, updated_at_us = %s, "
        "revision = revision + 1 WHERE uuid = %s AND host = %s AND generation = %s AND vm_state <> %s "
        "AND power_state = %s AND (agent_epoch < %s OR (agent_epoch = %s AND observed_seq < %s))"
    )
    CHANGED = (
        "UPDATE instances SET power_state = %s, progress = %s, agent_epoch = %s, observed_seq = %s, "
        "updated_at_us = %s, revision = revision + 1 WHERE uuid = %s"
    )
    READ = " ".join(("SELECT", ",".join(INSTANCES.columns), "FROM instances WHERE uuid = %s FOR UPDATE"))
    HISTORY = insert_text(INSTANCE_ACTION_EVENTS.name, INSTANCE_ACTION_EVENTS.columns)
    NUMBER = "UPDATE partitions SET last_n = LAST_INSERT_ID(last_n + 1) WHERE partition_id = %s"
    NOTE = insert_text("notifications", ("partition_id", "n", "created_at_us", "event_type", "instance_uuid", "body"))

    def __init__(self, target: MariaDbTarget) -> None:
        self._connection = connect(target, autocommit=True)
        self._cursor = self._connection.cursor()

    def write(self, body: Observation, epoch: int, seq: int) -> str:
        """One statement where the power state stays; a transaction otherwise."""
        uuid = body.instance_uuid
        if not body.gone:
            guard = (body.host, body.generation, VM_DELETED, body.power_state, epoch, epoch, seq)
            if self._cursor.execute(self.UNCHANGED, (body.progress, epoch, seq, now_us(), uuid, *guard)):
                return VERDICT_APPLIED
        self._connection.begin()
        try:
            verdict = self._judged(body, epoch, seq)
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()
        return verdict

    def _judged(self, body: Observation, epoch: int, seq: int) -> str:
        cursor = self._cursor
        cursor.execute(self.READ, (body.instance_uuid,))
        row = cursor.fetchone()
        former = None if row is None else INSTANCES.from_row(row)
        judged = judge_observation(former, body, epoch, seq, None)
        if former is None or judged.decision is None or judged.decision.instance is None:
            return judged.verdict
        image = judged.decision.instance
        image.updated_at_us = now_us()
        values = (image.power_state, image.progress, epoch, seq, image.updated_at_us, image.uuid)
        cursor.execute(self.CHANGED, values)
        if former.power_state != image.power_state:
            partition = partition_of(image.uuid)
            row = INSTANCE_ACTION_EVENTS.to_row(history_of(image, image.updated_at_us), partition)
            cursor.execute(self.HISTORY, row)
            note, packed = told(former, image)
            cursor.execute(self.NUMBER, (partition,))
            number = cursor.lastrowid
            cursor.execute(
                self.NOTE, (partition, number, note.created_at_us, note.event_type, note.instance_uuid, packed)
            )
        return judged.verdict

    def close(self) -> None:
        self._connection.close()


def named(columns: tuple[str, ...], row: tuple[Any, ...]) -> Mapping[str, Any]:
    """A row by its columns."""
    return dict(zip(columns, row, strict=True))
