"""Servers in bulk: the same rows straight into the primary and each of its replicas, past their logs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from gevent.pool import Pool

from loadtest.ledger.seeding import audited
from loadtest.reads.world import created_us, instance, name_of, project_of, uuid_of
from zcompute.db.native.connection import Connection
from zcompute.db.native.literal import tuple_literal
from zcompute.db.private import ADMINISTRATOR, PrivateMariaDB
from zcompute.db.tables import INSTANCES, MAPPINGS, TableCodec
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.partition import partition_of

ROWS_A_STATEMENT = 1_000
STATEMENT_S_MAX = 300.0
BULK_ROWS_MIN = 50_000  # from here on an index is made anew in less time than rows are added to it at random places
_PARTITION = 4_242_424_242
_CREATED = 4_343_434_343


def seed_cell(servers: Sequence[PrivateMariaDB], database: str, numbers: Sequence[int]) -> None:
    """The instances of a cell, in the order of the primary key, which loads several times faster than at random.

    The hour's audit counts as told before they come: conductors that run already would tell of them all beside some
    measurements and not beside others. Replicas get that by their primary's log, as they do what conductors write.
    """
    primary = _connect(servers[0], database)
    try:
        primary.query(audited())
    finally:
        primary.cut()
    _load(servers, database, INSTANCES, _instances(numbers), len(numbers))


def seed_root(servers: Sequence[PrivateMariaDB], database: str, cells: dict[str, Sequence[int]]) -> None:
    """Where each instance is."""
    _load(servers, database, MAPPINGS, _mappings(cells), sum(map(len, cells.values())))


def _load(
    servers: Sequence[PrivateMariaDB], database: str, table: TableCodec[Any], rows: Iterable[bytes], count: int
) -> None:
    """Each statement to all servers at once; many rows without the table's other indexes, which are made afterwards."""
    connections = [_connect(server, database) for server in servers]
    head = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ".encode()  # noqa: S608
    pool = Pool(len(connections))

    def everywhere(statement: bytes) -> None:
        pool.map(lambda connection: connection.query(statement), connections)

    try:
        everywhere(b"SET sql_log_bin=0, foreign_key_checks=0, unique_checks=0")
        drop, add = _indexes(connections[0], table.name) if count >= BULK_ROWS_MIN else (b"", b"")
        if drop:
            everywhere(drop)
        for chunk in _chunks(rows):
            everywhere(head + b",".join(chunk))
        if add:
            everywhere(add)
        everywhere(f"ANALYZE TABLE {table.name}".encode())
    finally:
        for connection in connections:
            connection.cut()


def _indexes(connection: Connection, table: str) -> tuple[bytes, bytes]:
    """Statements that drop all indexes of a table which are not unique, and make them again; empty when it has none."""
    found = connection.named_rows(
        b"SELECT index_name AS name, GROUP_CONCAT(column_name ORDER BY seq_in_index) AS columns_ "
        b"FROM information_schema.statistics WHERE table_schema=DATABASE() AND non_unique=1 AND table_name='%s' "
        b"GROUP BY index_name" % table.encode()
    )
    if not found:
        return b"", b""
    drop = ", ".join(f"DROP INDEX {row['name']}" for row in found)
    add = ", ".join(f"ADD INDEX {row['name']} ({row['columns_']})" for row in found)
    return f"ALTER TABLE {table} {drop}".encode(), f"ALTER TABLE {table} {add}".encode()


def _connect(server: PrivateMariaDB, database: str) -> Connection:
    target = parse_url(server.url(database))
    if not isinstance(target, MariaDbTarget):
        raise TypeError(f"expected a MariaDB database, found {target}")
    return Connection(replace(target, user=ADMINISTRATOR), timeout_s=STATEMENT_S_MAX)


def _chunks(rows: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_A_STATEMENT:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _instances(numbers: Sequence[int]) -> Iterator[bytes]:
    sample = instance(0)
    sample.uuid, sample.project_id, sample.name, sample.host = "UUID-MARK", "PROJECT-MARK", "NAME-MARK", "HOST-MARK"
    sample.created_at_us = _CREATED
    form = _form(
        tuple_literal(INSTANCES.to_row(sample, _PARTITION)), b"'UUID-MARK'", b"%d" % _PARTITION, b"'PROJECT-MARK'",
        b"'NAME-MARK'", b"%d" % _CREATED, b"'HOST-MARK'",
    )  # fmt: skip
    for uuid, number in sorted((uuid_of(number), number) for number in numbers):
        yield form % (
            b"'%s'" % uuid.encode(), b"%d" % partition_of(uuid), b"'%s'" % project_of(number).encode(),
            b"'%s'" % name_of(number).encode(), b"%d" % created_us(number), b"'host-%05d'" % (number % 100),
        )  # fmt: skip


def _mappings(cells: dict[str, Sequence[int]]) -> Iterator[bytes]:
    sample = InstanceMapping(uuid="UUID-MARK", project_id="PROJECT-MARK", cell="CELL-MARK")
    form = _form(
        tuple_literal(MAPPINGS.to_row(sample, _PARTITION)), b"'UUID-MARK'", b"%d" % _PARTITION, b"'PROJECT-MARK'",
        b"'CELL-MARK'",
    )  # fmt: skip
    rows = sorted((uuid_of(number), number, cell) for cell, numbers in cells.items() for number in numbers)
    for uuid, number, cell in rows:
        project = project_of(number)
        yield form % (
            b"'%s'" % uuid.encode(), b"%d" % partition_of(project), b"'%s'" % project.encode(),
            b"'%s'" % cell.encode(),
        )  # fmt: skip


def _form(literal: bytes, *marks: bytes) -> bytes:
    """A row's literal with a place for each of the marks, which stand in it in this order."""
    form = literal.replace(b"%", b"%%")
    at = -1
    for mark in marks:
        found = form.find(mark)
        if found <= at:
            raise ValueError(f"expected {mark!r} behind the marks before it in {literal!r}")
        form, at = form.replace(mark, b"%s", 1), found
    return form
