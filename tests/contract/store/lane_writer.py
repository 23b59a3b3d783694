"""A lane that numbers its batches, for tests."""

from __future__ import annotations

import secrets
from typing import Any

from zcompute.db.batch import NONCE_MAX, Batch, Change, Delete, HandOver, Insert, Update
from zcompute.db.store import ConductorRow, LaneConnection, Store
from zcompute.db.tables import Key, TableCodec
from zcompute.objects.base import VersionedObject


class LaneWriter:
    def __init__(self, store: Store, lane_id: int, term: int = 1) -> None:
        self.store = store
        self.lane_id = lane_id
        self.term = term
        self.number = 0
        self.connection: LaneConnection = store.open_lane(lane_id, term)

    @classmethod
    def register(cls, store: Store, row: ConductorRow) -> LaneWriter:
        return cls(store, store.register(row, 1)[0])

    def batch(self, *changes: Change, hand_over: HandOver | None = None) -> Batch:
        """The next batch, not yet committed."""
        return Batch(
            lane_id=self.lane_id,
            term=self.term,
            number=self.number + 1,
            nonce=secrets.randbelow(NONCE_MAX),
            changes=list(changes),
            hand_over=hand_over,
        )

    def send(self, batch: Batch) -> None:
        self.connection.commit(batch)
        self.number = batch.number

    def commit(self, *changes: Change, hand_over: HandOver | None = None) -> None:
        self.send(self.batch(*changes, hand_over=hand_over))


def insert(table: TableCodec[Any], *stored: VersionedObject) -> Insert:
    return Insert(table, [table.to_row(each, table.home_of(each)) for each in stored])


def update(table: TableCodec[Any], *stored: VersionedObject, columns: tuple[str, ...] | None = None) -> Update:
    wanted = columns or table.update_columns
    return Update(table, wanted, [table.update_row(each, wanted) for each in stored])


def delete(table: TableCodec[Any], *keys: Key) -> Delete:
    return Delete(table, list(keys))
