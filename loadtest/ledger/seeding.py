"""Instances in bulk: rows straight into a database whose conductors do not run yet."""

import time
from collections.abc import Iterator

from loadtest.ledger.world import BARE_HOST, BARE_INSTANCES, host_name, instance, uuid_of
from zcompute.db.native.connection import Connection
from zcompute.db.native.literal import tuple_literal
from zcompute.db.tables import INSTANCES, USAGE_AUDITS
from zcompute.db.url import MariaDbTarget
from zcompute.objects.notification import UsageAudit
from zcompute.objects.partition import PARTITIONS, partition_of

ROWS_A_STATEMENT = 1_000
STATEMENT_TIMEOUT_S = 120.0
AUDIT_US = 3_600_000_000
_MARKS = ("UUID-MARK", 4242424242, "NAME-MARK", "HOST-MARK")


def bare_numbers(instances: int) -> range:
    """The instances that no agent reports: the bare JOIN's."""
    return range(instances, instances + min(BARE_INSTANCES, instances))


def _rows(instances: int, agents: int) -> Iterator[bytes]:
    """Every row as a literal, in the order of the primary key, which loads several times faster than at random."""
    sample = instance(0, _MARKS[3])
    sample.uuid, sample.name = _MARKS[0], _MARKS[2]
    text = tuple_literal(INSTANCES.to_row(sample, 4242424242))
    before, rest = text.split(b"'UUID-MARK'")
    middle, rest = rest.split(b"4242424242")
    body, rest = rest.split(b"'NAME-MARK'")
    tail, end = rest.split(b"'HOST-MARK'")
    everything = instances + len(bare_numbers(instances))
    for uuid, number in sorted((uuid_of(number), number) for number in range(everything)):
        host = host_name(number % agents) if number < instances else BARE_HOST
        yield b"".join(
            (
                before, b"'%s'" % uuid.encode(), middle, b"%d" % partition_of(uuid), body,
                b"'server-%d'" % number, tail, b"'%s'" % host.encode(), end,
            )
        )  # fmt: skip


def audited() -> bytes:
    """A statement that has the hour's audit (``instance.exists``) of every partition told already: it would tell of all
    instances beside the first rounds, and of none beside the others."""
    told_us = (time.time_ns() // 1000 // AUDIT_US + 1) * AUDIT_US
    rows = [
        tuple_literal(USAGE_AUDITS.to_row(UsageAudit(partition_id=partition, period_at_us=told_us), partition))
        for partition in range(PARTITIONS)
    ]
    return b"REPLACE INTO usage_audits (%s) VALUES %s" % (",".join(USAGE_AUDITS.columns).encode(), b",".join(rows))


def seed_instances(target: MariaDbTarget, instances: int, agents: int) -> int:
    """Insert all instances, unlogged; how many rows."""
    connection = Connection(target, timeout_s=STATEMENT_TIMEOUT_S)
    head = b"INSERT INTO instances (%s) VALUES " % ",".join(INSTANCES.columns).encode()
    count = 0
    try:
        connection.query(b"SET sql_log_bin=0, foreign_key_checks=0, unique_checks=0")
        chunk: list[bytes] = []
        for row in _rows(instances, agents):
            chunk.append(row)
            if len(chunk) == ROWS_A_STATEMENT:
                count += connection.query(head + b",".join(chunk))
                chunk.clear()
        if chunk:
            count += connection.query(head + b",".join(chunk))
        connection.query(audited())
    finally:
        connection.cut()
    return count
