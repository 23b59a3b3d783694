"""An operator says that a host is down for certain: what waits for it ends, and it is quarantined when it is back."""

import json
import signal
from typing import Any

from tests.cluster.region import assert_all_active, assert_audit_holds, boot, command, delete_all, wait_until
from tests.cluster.test_actions import Clients
from tests.cluster.test_moves import comes_to, host_of
from zcompute.cli import exits
from zcompute.cli.up.region import Region
from zcompute.compute.virt.fake_log import domain_log_path, read_domain_log


def force_down(region: Region, host: str, *options: str) -> dict[str, Any]:
    done = command("host", "force-down", host, *options, "--format", "json", "--state-dir", str(region.paths.state_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tasks(region: Region, *arguments: str) -> dict[str, Any]:
    done = command("task", *arguments, "--format", "json", "--state-dir", str(region.paths.state_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def agent_of(region: Region, host: str) -> str:
    return next(plan.id for plan in region.plans.values() if host in plan.hosts)


def test_a_delete_on_a_dead_host_ends_and_the_host_destroys_what_it_still_has(sqlite_region: Region) -> None:
    region = sqlite_region
    run = boot(region, 20)
    assert_all_active(run)
    victim = next(item for item in run.boots if item.host.startswith("c1"))
    host, agent = victim.host, agent_of(region, victim.host)
    region.kill(agent)
    client = region.client()
    assert client.request("DELETE", f"/v2.1/servers/{victim.uuid}")[0] == 204
    [row] = tasks(region, "list", "--kind", "delete", "--instance", victim.uuid)["tasks"]
    assert (row["cell"], row["step"], row["hosts"]) == ("c1", "destroy", host)
    assert tasks(region, "show", victim.uuid)["id"] == row["id"]
    for word, why in (("abort", "cannot be aborted"), ("retry", "it is running")):
        refused = command("task", word, row["id"], "--state-dir", str(region.paths.state_dir))
        assert refused.returncode == exits.FAILED
        assert why in refused.stderr
    planned = force_down(region, host, "--dry-run")
    assert (planned["cell"], planned["forced_down"], planned["changed"], planned["dry_run"]) == ("c1", True, True, True)
    assert client.request("GET", f"/v2.1/servers/{victim.uuid}")[0] == 200
    unfenced = command("host", "force-down", host, "--fence", "--state-dir", str(region.paths.state_dir))
    assert unfenced.returncode == exits.FAILED
    assert "no fence command is configured" in unfenced.stderr
    assert force_down(region, host)["changed"]
    assert not force_down(region, host)["changed"]
    wait_until(lambda: client.request("GET", f"/v2.1/servers/{victim.uuid}")[0] == 404, "the delete ended")
    silent = command("host", "force-down", host, "--off", "--state-dir", str(region.paths.state_dir))
    assert silent.returncode == exits.FAILED
    assert "start its agent first" in silent.stderr

    def domains() -> set[str]:
        return set(read_domain_log(domain_log_path(region.paths.hosts, host)).running)

    assert victim.uuid in domains()
    region.restart(agent)
    wait_until(lambda: victim.uuid not in domains(), "the host has destroyed it", found=domains)
    later = boot(region, 20)
    assert_all_active(later)
    assert host not in {item.host for item in later.boots}
    assert not force_down(region, host, "--off")["forced_down"]
    region.wait_ready()
    assert_audit_holds(region)
    client.close()


def test_an_evacuated_server_is_destroyed_at_its_former_host_before_that_works_again(sqlite_region: Region) -> None:
    region = sqlite_region
    where = ("--state-dir", str(region.paths.state_dir))
    uuid = boot(region, 1).boots[0].uuid
    server = Clients(region, uuid)
    host = host_of(server)
    agent = agent_of(region, host)
    assert server.act({"evacuate": {"onSharedStorage": False}})[0] == 400
    process = region.processes[agent]
    process.send(signal.SIGSTOP)
    try:
        force_down(region, host)
        cell = region.plans[agent].cell
        fellow = next(plan for plan in region.plans.values() if plan.hosts and plan.cell == cell and plan.id != agent)
        assert server.act({"evacuate": {"onSharedStorage": False, "host": fellow.hosts[0]}})[0] == 200
        wait_until(lambda: host_of(server) != host, "it is elsewhere", found=lambda: host_of(server))
        comes_to(server, "ACTIVE")
    finally:
        process.send(signal.SIGCONT)

    def runs_there() -> bool:
        return uuid in read_domain_log(domain_log_path(region.paths.hosts, host)).running

    def let_in() -> bool:
        done = command("host", "force-down", host, "--off", *where)
        assert done.returncode == 0 or "still has" in done.stderr or "start its agent" in done.stderr, done.stderr
        assert done.returncode != 0 or not runs_there()
        return done.returncode == 0

    wait_until(let_in, "the host works again")
    assert not runs_there()
    delete_all(region, [uuid])
    region.wait_ready()
    assert_audit_holds(region)


def test_a_host_that_nobody_knows_is_one_sentence(sqlite_region: Region) -> None:
    done = command("host", "force-down", "nowhere", "--state-dir", str(sqlite_region.paths.state_dir))
    assert done.returncode == exits.FAILED
    assert "host nowhere is not known in cells c1, c2" in done.stderr


def test_a_task_or_a_cell_that_nobody_knows_is_one_sentence(sqlite_region: Region) -> None:
    where = ("--state-dir", str(sqlite_region.paths.state_dir))
    done = command("task", "show", "nothing", *where)
    assert done.returncode == exits.FAILED
    assert "no task nothing, nor a task of a server nothing" in done.stderr
    done = command("task", "list", "--cell", "c9", *where)
    assert done.returncode == exits.FAILED
    assert "cell c9 is not known, those known are c1, c2" in done.stderr


def test_a_disabled_host_gets_no_new_server_and_keeps_those_that_it_has(sqlite_region: Region) -> None:
    region = sqlite_region
    where = ("--format", "json", "--state-dir", str(region.paths.state_dir))
    first = boot(region, 8)
    host = first.boots[0].host
    done = command("host", "disable", host, "--reason", "disks", *where)
    assert done.returncode == 0, done.stderr
    shown = json.loads(command("host", "show", host, *where).stdout)
    assert (shown["disabled"], shown["disabled_reason"]) == (True, "disks")
    later = boot(region, 12)
    assert_all_active(later)
    assert host not in {item.host for item in later.boots}
    server = Clients(region, first.boots[0].uuid)
    assert server.act({"reboot": {"type": "HARD"}})[0] == 202
    comes_to(server, "ACTIVE")
    assert json.loads(command("host", "enable", host, *where).stdout)["changed"]
    assert not json.loads(command("host", "enable", host, *where).stdout)["changed"]
    delete_all(region, [item.uuid for item in (*first.boots, *later.boots)])
    assert_audit_holds(region)
