"""The owner of a server killed, or stopped, in the middle of a move: between the commit of a step and its command, and
between the command and its result. The next owner carries the move to the same end, with one copy."""

import re
import signal
from collections.abc import Callable

import pytest

from loadtest.tasks.hosts import on_two_hosts, read_lines
from tests.cluster.region import assert_audit_holds, boot, delete_all, wait_until
from tests.cluster.test_actions import Clients
from tests.cluster.test_faults import store_of
from tests.cluster.test_moves import comes_to, host_of
from tests.failpoints.test_conductors import ARMED, BOTH, Armed, armed, region, running, wait_owners
from tests.unit.test_failpoints import OF_MOVES, places
from zcompute.cli.up.region import Region
from zcompute.objects.partition import partition_of

__all__ = ["armed", "region", "running"]  # the fixtures

LIVE = {"os-migrateLive": {"host": None, "block_migration": True, "disk_over_commit": False}}
COLD = {"migrate": None}
AGENT = "c1-compute-1"
KILLED = [
    ("telling.before_send", 3, COLD, "VERIFY_RESIZE"),  # activate, behind the switch
    ("telling.after_send", 2, COLD, "VERIFY_RESIZE"),  # send
    ("telling.after_send", 2, LIVE, "ACTIVE"),  # migrate
]
LATE_TRIES_MAX = 5
TRIED = {"telling.before_send", "telling.after_send"}


def test_every_place_of_moves_is_tried() -> None:
    assert {place for place in places() if place.startswith(OF_MOVES)} == TRIED


def server_of_armed(region: Region) -> Clients:
    """A server whose partition the armed conductor owns."""
    wait_owners(region, BOTH)
    for _ in range(4):
        uuids = [each.uuid for each in boot(region, 6).boots]
        with store_of(region, "c1") as store:
            owners = store.read_map().partition_map().owners
        own = [uuid for uuid in uuids if owners[partition_of(uuid)] == ARMED]
        delete_all(region, [uuid for uuid in uuids if uuid not in own[:1]])
        if own:
            return Clients(region, own[0])
    raise AssertionError(f"{ARMED} owns none of 24 servers")


def uuid_of(server: Clients) -> str:
    return server.path.rpartition("/")[2]


def assert_moved(region: Region, server: Clients, former: str, status: str) -> None:
    comes_to(server, status)
    uuid = uuid_of(server)
    assert host_of(server) != former
    lines = [each for each in read_lines(region.paths.hosts) if each[1].uuid == uuid]
    assert on_two_hosts(lines) == []
    assert [line.op for _, line in lines].count("activate") <= 1
    if status == "VERIFY_RESIZE":
        assert server.act({"confirmResize": None})[0] == 204
        comes_to(server, "ACTIVE")
    for service_id in BOTH:
        if not region.processes[service_id].alive:
            region.restart(service_id)
    region.wait_ready()
    assert_audit_holds(region)
    delete_all(region, [uuid])


@pytest.mark.parametrize(("place", "count", "body", "status"), KILLED)
def test_killed_in_a_move(
    region: Region, armed: Armed, place: str, count: int, body: dict[str, object], status: str
) -> None:
    armed.start(place, action=f"kill@{count}")
    server = server_of_armed(region)
    former = host_of(server)
    armed.open_gate()
    assert server.act(body)[0] == 202
    armed.assert_died()
    assert_moved(region, server, former, status)


def test_the_command_of_a_stopped_owner_comes_late_and_is_refused(region: Region, armed: Armed) -> None:
    """Its agent gives a silent conductor up after 1.9 s, so that nothing comes over that link any more: on a machine
    that is busy with much else the take-over may have taken longer."""
    assert any(comes_late(region, armed) for _ in range(LATE_TRIES_MAX))


def comes_late(region: Region, armed: Armed) -> bool:
    """Whether the command came to the agent at all. Whether it did or not, the move ends right."""
    armed.start("telling.before_send", action="stop@2")
    server = server_of_armed(region)
    former, uuid = host_of(server), uuid_of(server)
    said = region.paths.log(AGENT).stat().st_size
    adopted = log_has(region, said, f"adopted instance={uuid} host={former}")  # its own look is at the destination
    armed.open_gate()
    assert server.act(COLD)[0] == 202
    armed.assert_stopped()
    wait_until(adopted, "the next owner adopts the server")
    region.kill(ARMED, signal.SIGCONT)
    refused = log_has(region, said, f"command of a former owner refused step=send instance={uuid}")
    assert_moved(region, server, former, "VERIFY_RESIZE")
    return refused()


def log_has(region: Region, said: int, pattern: str) -> Callable[[], bool]:
    """Whether the agent has logged it behind this place."""

    def look() -> bool:
        with region.paths.log(AGENT).open("rb") as file:
            file.seek(said)
            return re.search(pattern, file.read().decode(errors="replace")) is not None

    return look
