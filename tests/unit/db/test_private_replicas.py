"""A private primary with replicas: what the primary commits, they have; none of them can be written."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcompute.cli.up.statedir import free_ports
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.private import PrivateMariaDB, find_programs
from zcompute.db.private_replicas import PrivateReplicas
from zcompute.db.url import MariaDbTarget, parse_url

pytestmark = pytest.mark.skipif(
    find_programs() is None and os.environ.get("CI") != "true", reason="mariadbd is missing"
)

READ_ONLY = 1290


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[PrivateReplicas]:
    made = PrivateReplicas(tmp_path, list(free_ports(["primary", "one", "two"], {}).values()))
    made.start()
    try:
        made.primary.create_database("x")
        connected(made.primary).query(b"CREATE TABLE t (a INT PRIMARY KEY)")
        made.wait_caught_up()  # a replica killed within a DDL statement may have it in its log, not in its position
        yield made
    finally:
        made.stop()


def connected(server: PrivateMariaDB) -> Connection:
    target = parse_url(server.url("x"))
    assert isinstance(target, MariaDbTarget)
    return Connection(target)


def insert(server: PrivateMariaDB, number: int) -> None:
    assert connected(server).query(b"INSERT INTO t VALUES (%d)" % number) == 1


def numbers(server: PrivateMariaDB) -> list[int]:
    return [row[0] for row in connected(server).rows(b"SELECT a FROM t ORDER BY a")]


def test_replicas_have_what_the_primary_committed_and_take_no_write(servers: PrivateReplicas) -> None:
    insert(servers.primary, 1)
    servers.wait_caught_up()
    for replica in servers.replicas:
        assert numbers(replica) == [1]
        with pytest.raises(ServerError) as refused:
            insert(replica, 2)
        assert refused.value.code == READ_ONLY


def test_a_replica_killed_meanwhile_catches_up_after_its_restart(servers: PrivateReplicas) -> None:
    first = servers.replicas[0]
    first.kill()
    insert(servers.primary, 1)
    first.start()
    servers.wait_caught_up()
    assert numbers(first) == [1]
    state = servers.state(first)
    assert state.io_running
    assert state.sql_running
    assert state.received == state.applied


def test_another_server_becomes_the_primary_and_the_rest_follow_it(servers: PrivateReplicas) -> None:
    insert(servers.primary, 1)
    servers.wait_caught_up()
    old, new = servers.primary, servers.replicas[0]
    new.administer("STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = OFF")
    servers.primary = new
    for server in servers.replicas:
        servers.follow(server)
    insert(new, 2)
    servers.wait_caught_up()
    assert numbers(old) == [1, 2]
