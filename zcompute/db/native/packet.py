"""A batch as one packet: a compound statement that runs to its end, or is rolled back, in one round trip.

Every statement checks how many rows it changed. ``stage`` names the table at work, because the server's own messages
(a duplicate entry, data too long) do not.
"""

from typing import Any

from zcompute.db.batch import Batch, Delete, HandOver, Insert, Numbering, Purge, Update, ordered
from zcompute.db.durability import DEMANDED
from zcompute.db.errors import BadRow
from zcompute.db.native.literal import UnrenderableValue, literal, tuple_literal
from zcompute.db.tables import REVISION_COLUMN, Row, TableCodec

PACKET_BYTES_MAX = 12 * 2**20  # below the server's max_allowed_packet, 16 MiB unless told otherwise

ERROR_FENCED = 30001
ERROR_GUARD = 30002
ERROR_RECEIVER_DEAD = 30003

STAGE_LANE = "lanes"

_BEGIN = (
    b"BEGIN NOT ATOMIC DECLARE stage, reason VARCHAR(512) DEFAULT ''; DECLARE held, version BIGINT; "
    b"DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN GET DIAGNOSTICS CONDITION 1 reason = MESSAGE_TEXT; ROLLBACK; "
    b"SET reason = LEFT(CONCAT(stage, ': ', reason), 500); RESIGNAL SET MESSAGE_TEXT = reason; END; "
    b"START TRANSACTION; SET stage = 'lanes'; "
)
_END = b"COMMIT; END"
_END_REPLICATED = DEMANDED + b"COMMIT; " + DEMANDED + b"END"
_SIGNAL = b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = %d, MESSAGE_TEXT = '%s'; "
_EXPECT = b"IF ROW_COUNT() <> %d THEN " + _SIGNAL + b"END IF; "


def render(batch: Batch, *, replicated: bool = False) -> bytes:
    """The packet of a batch. ``replicated``: it ends well only where a replica has it (zcompute.db.durability).

    Raises BadRow for values that no literal can hold, and for a batch that is too large.
    """
    parts = [_BEGIN]
    if batch.hand_over is not None:
        parts.append(_lock_lanes(batch.lane_id, batch.hand_over.to_lane))
    parts.append(_fence(batch))
    for change in ordered(batch.changes):
        parts.append(b"SET stage = '%s'; " % change.table.name.encode())
        if isinstance(change, Insert):
            parts.append(_insert(change))
        elif isinstance(change, Update):
            parts.append(_update(change))
        else:
            parts.append(_delete(change))
    if batch.purges:
        parts.append(b"SET stage = 'notifications'; ")
        parts += [_purge(purge) for purge in batch.purges]
    if batch.numberings:
        parts.append(_number(batch.lane_id, batch.numberings))
    if batch.hand_over is not None:
        parts.append(_hand_over(batch.lane_id, batch.hand_over))
    parts.append(_END_REPLICATED if replicated else _END)
    packet = b"".join(parts)
    if len(packet) > PACKET_BYTES_MAX:
        table = batch.changes[0].table.name if batch.changes else STAGE_LANE
        raise BadRow(table, None, f"the batch has {len(packet)} bytes, at most {PACKET_BYTES_MAX} are allowed")
    return packet


def _fence(batch: Batch) -> bytes:
    return (
        b"UPDATE lanes SET applied = %d, nonce = %d WHERE lane_id = %d AND alive = 1 AND term = %d AND applied = %d; "
        % (batch.number, batch.nonce, batch.lane_id, batch.term, batch.number - 1)
    ) + _EXPECT % (1, ERROR_FENCED, b"fenced")


def _lock_lanes(mine: int, receiver: int) -> bytes:
    """Both lanes' rows, in the order of their ids.

    Without the lock the statement would not see a take-over that commits beside it.
    """
    first, second = sorted((mine, receiver))
    lock = b"SELECT alive INTO held FROM lanes WHERE lane_id = %d FOR UPDATE; "
    # A row that is not there only warns; the checks that follow find it out.
    return lock % first + lock % second


def _hand_over(mine: int, hand_over: HandOver) -> bytes:
    ids = b",".join(b"%d" % partition for partition in sorted(hand_over.partitions))
    # A bare SELECT .. INTO keeps the variable when there is no row, so it is counted.
    return (
        b"SET stage = 'lanes'; SELECT COUNT(*) INTO held FROM lanes WHERE lane_id = %d AND alive = 1 FOR UPDATE; "
        b"IF held = 0 THEN "
        % hand_over.to_lane
        + _SIGNAL % (ERROR_RECEIVER_DEAD, b"receiver dead")
        + b"END IF; SET stage = 'partitions'; "
        b"SELECT map_version + 1 INTO version FROM cell_state WHERE id = 1 FOR UPDATE; "
        b"UPDATE partitions SET lane_id = %d, owner_epoch = version WHERE lane_id = %d AND partition_id IN (%s); "
        % (hand_over.to_lane, mine, ids)
        + _EXPECT % (len(hand_over.partitions), ERROR_GUARD, b"guard partitions")
        + b"UPDATE cell_state SET map_version = version WHERE id = 1; "
    )


def _purge(purge: Purge) -> bytes:
    return b"DELETE FROM notifications WHERE partition_id = %d AND n BETWEEN %d AND %d; " % (
        purge.partition_id,
        purge.first,
        purge.last,
    )


def _number(mine: int, numberings: list[Numbering]) -> bytes:
    """Move last_n of all partitions that notify in this batch, in the order of their ids; each must be as expected."""
    values = b",".join(
        b"(%d,%d,%d)" % (each.partition_id, each.before, each.after)
        for each in sorted(numberings, key=lambda each: each.partition_id)
    )
    return (
        b"SET stage = 'partitions'; UPDATE (WITH w(partition_id,former,latter) AS (VALUES %s) SELECT * FROM w) v "
        b"STRAIGHT_JOIN partitions t ON t.partition_id = v.partition_id SET t.last_n = v.latter "
        b"WHERE t.lane_id = %d AND t.last_n = v.former; " % (values, mine)
    ) + _EXPECT % (len(numberings), ERROR_GUARD, b"guard partitions")


def _guard(table: TableCodec[Any], rows: int) -> bytes:
    return _EXPECT % (rows, ERROR_GUARD, b"guard " + table.name.encode())


def _values(table: TableCodec[Any], rows: list[Row]) -> bytes:
    try:
        return b",".join([tuple_literal(row) for row in rows])
    except UnrenderableValue:
        pass
    width = len(table.key_columns)
    for row in rows:
        try:
            tuple_literal(row)
        except UnrenderableValue as error:
            raise BadRow(table.name, row[:width], str(error)) from error
    raise AssertionError("unreachable: one of the rows has no literal")


def _insert(change: Insert) -> bytes:
    table = change.table
    head = b"INSERT INTO %s (%s) VALUES " % (table.name.encode(), ",".join(table.columns).encode())
    return head + _values(table, change.rows) + b"; " + _guard(table, len(change.rows))


def _update(change: Update) -> bytes:
    """UPDATE .. JOIN (VALUES ..): the fastest there is, and unlike INSERT .. ON DUPLICATE KEY it revives no row."""
    table = change.table
    names = (*table.key_columns, *change.columns)
    join = " AND ".join(f"t.{key} = v.{key}" for key in table.key_columns)
    settings = ", ".join(f"t.{column} = v.{column}" for column in change.columns)
    return b"".join(
        [
            b"UPDATE (WITH w(",
            ",".join(names).encode(),
            b") AS (VALUES ",
            _values(table, change.rows),
            b") SELECT * FROM w) v STRAIGHT_JOIN ",
            f"{table.name} t ON {join} SET {settings} ".encode(),
            f"WHERE v.{REVISION_COLUMN} > t.{REVISION_COLUMN}; ".encode(),
            _guard(table, len(change.rows)),
        ]
    )


def _delete(change: Delete) -> bytes:
    table = change.table
    head = b"DELETE FROM %s WHERE " % table.name.encode()
    if len(table.key_columns) == 1:
        keys = b",".join([literal(key[0]) for key in change.keys])
        where = table.key_columns[0].encode() + b" IN (" + keys + b")"
    else:
        where = b" OR ".join([_key_condition(table, key) for key in change.keys])
    return head + where + b"; " + _guard(table, len(change.keys))


def _key_condition(table: TableCodec[Any], key: Row) -> bytes:
    parts = [column.encode() + b" = " + literal(value) for column, value in zip(table.key_columns, key, strict=True)]
    return b"(" + b" AND ".join(parts) + b")"
