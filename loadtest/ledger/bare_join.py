"""The bare JOIN: the text of the batches' UPDATE and INSERTs and nothing else, on one connection.

No bus, no decision, no fence, no numbering, no guard; the texts are made before the clock runs. On instances that no
agent reports, with a smaller working set than the conductors', so what it reaches is an upper bound.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

from loadtest.ledger.seeding import bare_numbers
from loadtest.ledger.world import BARE_HOST, TRANSITION_EVERY, history_of, instance, other_power
from zcompute.conductor.notices import instance_update
from zcompute.db.native.connection import Connection
from zcompute.db.native.literal import tuple_literal
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, NOTIFICATIONS, TableCodec
from zcompute.db.url import MariaDbTarget
from zcompute.objects.base import pack
from zcompute.objects.partition import partition_of

BATCH_ROWS = 500
COLUMNS = ("updated_at_us", "power_state", "progress", "agent_epoch", "observed_seq", "revision")
N_FIRST = 10**15  # far above what the cell's own notifications reach


class BareJoin:
    """Runs batches for a while, again and again; every one changes other values."""

    def __init__(self, target: MariaDbTarget, instances: int) -> None:
        self._connection = Connection(target)
        self._numbers = list(bare_numbers(instances))
        self._round = 1
        self._told = N_FIRST

    def run(self, seconds: float, batches_max: int) -> tuple[float, float]:
        """Rows a second, and the seconds it ran."""
        texts = [self._text() for _ in range(batches_max)]
        began = time.monotonic()
        rows = 0
        for text in texts:
            self._connection.query(text)
            rows += BATCH_ROWS
            if time.monotonic() - began >= seconds:
                break
        lasted = time.monotonic() - began
        return rows / lasted, lasted

    def _text(self) -> bytes:
        self._round += 1
        numbers = random.sample(self._numbers, min(BATCH_ROWS, len(self._numbers)))
        now_us = time.time_ns() // 1000
        updates: list[tuple[object, ...]] = []
        events: list[tuple[object, ...]] = []
        notes: list[tuple[object, ...]] = []
        for place, number in enumerate(numbers):
            former = instance(number, BARE_HOST)
            image = instance(number, BARE_HOST)
            image.agent_epoch, image.observed_seq, image.revision = 1, self._round, self._round
            image.progress, image.updated_at_us = self._round % 100, now_us
            if place % TRANSITION_EVERY == 0:
                image.power_state = other_power(former.power_state)
                partition = partition_of(image.uuid)
                events.append(INSTANCE_ACTION_EVENTS.to_row(history_of(image, now_us), partition))
                note = instance_update(former, image, "")
                if note is not None:
                    self._told += 1
                    notes.append((partition, self._told, now_us, note.event_type, image.uuid, pack(note)))
            values = [getattr(image, column) for column in COLUMNS]
            updates.append((image.uuid, *values))
        return b"".join(
            [
                b"BEGIN NOT ATOMIC START TRANSACTION; UPDATE (WITH w(uuid,",
                ",".join(COLUMNS).encode(),
                b") AS (VALUES ",
                _tuples(sorted(updates)),
                b") SELECT * FROM w) v STRAIGHT_JOIN instances t ON t.uuid = v.uuid SET ",
                ", ".join(f"t.{column} = v.{column}" for column in COLUMNS).encode(),
                b" WHERE v.revision > t.revision; ",
                _insert(INSTANCE_ACTION_EVENTS, sorted(events, key=lambda row: str(row[0]))),
                _insert(NOTIFICATIONS, notes),
                b"COMMIT; END",
            ]
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.cut()


def _tuples(rows: Sequence[tuple[object, ...]]) -> bytes:
    return b",".join([tuple_literal(row) for row in rows])


def _insert(table: TableCodec[Any], rows: Sequence[tuple[object, ...]]) -> bytes:
    head = b"INSERT INTO %s (%s) VALUES " % (table.name.encode(), ",".join(table.columns).encode())
    return head + _tuples(rows) + b"; "
