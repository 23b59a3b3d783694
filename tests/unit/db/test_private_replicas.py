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


CELL = "x"


def again(servers: PrivateReplicas, place: Path) -> PrivateReplicas:
    """A second run of the same group, as another process would begin it."""
    servers.stop()
    return PrivateReplicas(place, [server.port for server in servers.servers], semi_synchronous=True, database=CELL)


def test_a_group_started_again_after_a_promotion_keeps_its_primary_and_the_lost_one_begins_anew(
    servers: PrivateReplicas, tmp_path: Path
) -> None:
    connection = connected(servers.primary)
    connection.query(b"CREATE TABLE cell_state (id INT PRIMARY KEY, term INT)")
    connection.query(b"INSERT INTO cell_state VALUES (1, 1)")
    servers.wait_caught_up()
    lost, new, other = servers.servers
    other.administer("STOP SLAVE")
    new.administer("STOP SLAVE", "UPDATE x.cell_state SET term = 2", "INSERT INTO x.t VALUES (2)")
    insert(lost, 1)  # after the replicas were stopped: nobody else has it

    second = again(servers, tmp_path)
    second.start()
    try:
        assert second.primary is second.servers[1]
        insert(second.primary, 3)  # acknowledged by a replica that was made anew, or by the other
        second.wait_caught_up()
        for server in second.servers:
            assert numbers(server) == [2, 3]
        assert [path.name for path in second.set_aside] == ["server-1.lost"]
        for replica in second.replicas:
            with pytest.raises(ServerError) as refused:
                insert(replica, 4)
            assert refused.value.code == READ_ONLY
    finally:
        second.stop()

    third = again(second, tmp_path)  # and nothing is set aside twice
    third.start()
    try:
        assert third.primary is third.servers[1]
        assert third.set_aside == []
        insert(third.primary, 5)
        third.wait_caught_up()
        assert numbers(third.servers[0]) == [2, 3, 5]
    finally:
        third.stop()
