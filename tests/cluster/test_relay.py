"""An agent is cut off from one conductor of its cell, which lives: the other one hands on, and nothing is lost."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.cluster.forwarder import Forwarder, detoured
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    boot_while,
    command,
    delete_all,
    started,
    wait_until,
    when_share_done,
)
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.compute.virt.fake_log import OP_DESTROY, DomainLine, domain_log_path
from zcompute.db.drivers import open_store
from zcompute.objects.instance import POWER_NOSTATE

AGENT, FAR, NEAR = "c1-compute-1", "c1-conductor-2", "c1-conductor-1"
BOOTS = 40
BEATS = 5  # of 2 s each; 3 missed ones are down


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Region, Forwarder]]:
    """A cell of two conductors and two agents, of which the link between AGENT and FAR can be cut."""
    shape = Shape(cells=("c1",), conductors=2, computes=2, hosts_per_compute=3)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as region:
        with detoured(region, AGENT, [FAR]) as forwarders:
            region.wait_ready()
            yield region, forwarders[FAR]


@pytest.fixture
def cut(cell: tuple[Region, Forwarder]) -> Iterator[tuple[Region, Forwarder]]:
    """The link is down, and both conductors own partitions; afterwards it is up again."""
    region, forwarder = cell
    wait_until(lambda: FAR in linked(region), "the direct link up")
    wait_until(lambda: owners(region) == {NEAR, FAR}, "both own partitions")
    forwarder.cut()
    wait_until(lambda: FAR not in linked(region), "the direct link down")
    yield region, forwarder
    forwarder.open()


def stat(region: Region, service_id: str) -> dict[str, Any]:
    """What the service's endpoint does; empty while it cannot be asked."""
    done = command("bus", "stat", service_id, "--state-dir", str(region.paths.state_dir), "--format", "json")
    found = json.loads(done.stdout)["endpoints"] if done.returncode == 0 else []
    return dict(found[0]) if found else {}


def counter(region: Region, service_id: str, name: str) -> int:
    found = stat(region, service_id)
    assert found, service_id
    return int(found["counters"].get(name, 0))


def linked(region: Region) -> set[str]:
    """The conductors with which the agent has a link."""
    links = stat(region, AGENT).get("links", [])
    return {link["service_id"] for link in links if link["state"] == "up"}


def owners(region: Region) -> set[str]:
    store = open_store(region.database_url("c1"))
    try:
        return set(store.read_map().partition_map().owners)
    finally:
        store.close()


def down_hosts(region: Region) -> list[str]:
    api = region.client()
    services = api.get("/v2.1/os-services")["services"]
    api.close()
    return [row["host"] for row in services if row["binary"] == "nova-compute" and row["state"] != "up"]


def servers(region: Region) -> list[dict[str, Any]]:
    api = region.client()
    found: list[dict[str, Any]] = api.get("/v2.1/servers/detail?limit=1000")["servers"]
    api.close()
    return found


def beats_handed_on(region: Region) -> int:
    """How many messages of relayed beats have come to FAR."""
    methods = stat(region, FAR)["methods"]
    return int(next(row["ended"] for row in methods if row["method"] == "relay.beat"))


def test_boots_and_deletes_go_on_and_hosts_stay_up(cut: tuple[Region, Forwarder]) -> None:
    region, _ = cut
    run = boot(region, BOOTS)
    assert_all_active(run)
    assert_audit_holds(region)
    delete_all(region, [item.uuid for item in run.boots[: BOOTS // 2]])
    assert_audit_holds(region)
    assert owners(region) == {NEAR, FAR}, "no take-over: the far conductor lives"
    for name in ("relayed_reports", "relayed_commands", "relayed_beats"):
        assert counter(region, NEAR, name) > 0, name
    assert counter(region, FAR, "relayed_reports") == 0
    before = beats_handed_on(region)
    wait_until(lambda: beats_handed_on(region) >= before + BEATS, "beats for longer than a silence that is down")
    assert down_hosts(region) == []
    delete_all(region, [item.uuid for item in run.boots[BOOTS // 2 :]])


def test_changes_of_state_arrive_at_owners_that_are_cut_off(cut: tuple[Region, Forwarder]) -> None:
    region, _ = cut
    run = boot(region, BOOTS)
    assert_all_active(run)
    crashed = [row for row in servers(region) if row["OS-EXT-SRV-ATTR:host"] in region.plans[AGENT].hosts]
    assert len(crashed) >= 8, "some of them are FAR's"
    for row in crashed:
        file = domain_log_path(region.paths.hosts, row["OS-EXT-SRV-ATTR:host"])
        with file.open("ab") as log:
            log.write(msgspec.json.encode(DomainLine(op=OP_DESTROY, uuid=row["id"])) + b"\n")

    def still_running() -> list[str]:
        names = {row["id"] for row in crashed}
        rows = [row for row in servers(region) if row["id"] in names]
        return [row["id"] for row in rows if row["OS-EXT-STS:power_state"] != POWER_NOSTATE]

    wait_until(lambda: not still_running(), "every crash reported", timeout_s=40, found=still_running)
    delete_all(region, [item.uuid for item in run.boots])
    assert_audit_holds(region)


def test_an_agent_that_starts_while_it_is_cut_off_takes_up_its_hosts(cut: tuple[Region, Forwarder]) -> None:
    region, _ = cut
    region.kill(AGENT)
    region.restart(AGENT)
    wait_until(lambda: counter(region, NEAR, "relayed_begins") > 0, "a begin handed on")
    wait_until(lambda: stat(region, AGENT), "the agent linked")
    assert_all_active(boot(region, BOOTS))
    assert_audit_holds(region)
    assert down_hosts(region) == []


def test_the_relay_is_killed_in_the_middle(cut: tuple[Region, Forwarder]) -> None:
    region, _ = cut

    def kill_the_relay(booter: Booter) -> None:
        when_share_done(booter, 0.3)
        region.kill(NEAR)
        wait_until(lambda: owners(region) == {FAR}, "the other one owns everything")
        region.restart(NEAR)

    assert_all_active(boot_while(region, 3 * BOOTS, kill_the_relay))
    wait_until(lambda: NEAR in linked(region), "the relay is back")
    assert FAR not in linked(region)
    wait_until(lambda: not down_hosts(region), "every host up")
    assert_audit_holds(region)
    delete_all(region, [row["id"] for row in servers(region)])
    assert_audit_holds(region)


def test_the_direct_link_comes_back_in_the_middle(cut: tuple[Region, Forwarder]) -> None:
    region, forwarder = cut

    def mend(booter: Booter) -> None:
        when_share_done(booter, 0.3)
        forwarder.open()
        wait_until(lambda: FAR in linked(region), "the direct link up")

    assert_all_active(boot_while(region, 3 * BOOTS, mend))
    assert_audit_holds(region)
    before = counter(region, NEAR, "relayed_reports")
    assert_all_active(boot(region, 10))
    assert counter(region, NEAR, "relayed_reports") == before, "nothing is relayed any more"
