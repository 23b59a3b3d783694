"""The operator looks into a whole region of real processes, and into one that is hurt."""

import json
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.region import command, started, wait_until
from zcompute.cli import exits
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    shape = Shape(cells=("c1",), conductors=2, computes=1, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as region:
        yield region


def bus(region: Region, *arguments: str) -> Any:
    """Run ``zcompute bus ... --format json``, expecting success."""
    done = command("bus", *arguments, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_stat_shows_every_conductor_with_its_links(region: Region) -> None:
    document = bus(region, "stat")
    assert document["missing"] == []
    seen = {stat["service_id"]: stat for stat in document["endpoints"]}
    assert set(seen) == {"root-conductor-1", "root-conductor-2", "c1-conductor-1", "c1-conductor-2"}
    peers = {link["service_id"] for link in seen["c1-conductor-1"]["links"]}
    assert {"c1-conductor-2", "c1-compute-1", "c1-scheduler-1", "api-1", "root-conductor-1"} <= peers
    beats = next(row for row in seen["c1-conductor-1"]["methods"] if row["method"] == "host.beat")
    assert beats["arrived"] == beats["queued"] + beats["expired"] + beats["running"] + beats["ended"]


def test_services_that_listen_on_nothing_are_asked_through_a_conductor(region: Region) -> None:
    names = ["c1-compute-1", "c1-scheduler-1", "api-1"]
    document = bus(region, "stat", *names)
    assert [stat["service_id"] for stat in document["endpoints"]] == names
    assert all(stat["addresses"] == [] for stat in document["endpoints"])
    (pinged,) = bus(region, "ping", "c1-compute-1")
    assert pinged["reply"]["role"] == "compute"
    assert pinged["via"].startswith("c1-conductor-")
    assert pinged["round_trip_us"] >= pinged["reply"]["relay_us"] > 0


@pytest.mark.parametrize("view", ["link", "method", "pool", "service"])
def test_tables_say_how_many_rows_there_are(region: Region, view: str) -> None:
    done = command("bus", "stat", "--by", view, "--rows", "3", "--state-dir", str(region.paths.state_dir))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^\d+ {view}s, 3 shown$", done.stdout, re.MULTILINE), done.stdout
    assert "conductor" in done.stdout


def test_the_table_of_streams_says_how_many_there_are(region: Region) -> None:
    done = command("bus", "stat", "--by", "stream", "--state-dir", str(region.paths.state_dir))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ streams, \d+ shown$", done.stdout, re.MULTILINE), done.stdout


def test_ping_counts_and_a_service_that_is_not_there_is_one_sentence(region: Region) -> None:
    where = ("--state-dir", str(region.paths.state_dir))
    done = command("bus", "ping", "c1-conductor-1", "--count", "3", "--interval-ms", "10", *where)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"c1-conductor-1: [\d.]+ ms, conductor of cell c1", done.stdout)) == 3
    missing = command("bus", "ping", "c9-compute-1", "--timeout-ms", "3000", *where)
    assert missing.returncode == exits.FAILED
    assert "c9-compute-1 was not reached" in missing.stderr


def test_a_stopped_conductor_is_named_and_costs_its_own_rows_only(region: Region) -> None:
    region.processes["root-conductor-2"].send(signal.SIGSTOP)
    try:
        done = command(
            "bus", "stat", "--format", "json", "--timeout-ms", "2500", "--state-dir", str(region.paths.state_dir)
        )
    finally:
        region.processes["root-conductor-2"].send(signal.SIGCONT)
    assert done.returncode == exits.FAILED
    assert "root-conductor-2" in done.stderr
    document = json.loads(done.stdout)
    assert [gap["service"] for gap in document["missing"]] == ["root-conductor-2"]
    assert len(document["endpoints"]) == 3


def test_sigusr2_writes_the_state_of_every_kind_of_service_and_ends_none(region: Region) -> None:
    for service_id in ("c1-conductor-1", "c1-compute-1", "c1-scheduler-1", "api-1"):
        region.processes[service_id].send(signal.SIGUSR2)
        pattern = f"{service_id}-2*.state.json"
        wait_until(lambda pattern=pattern: list(region.paths.logs.glob(pattern)), f"the dump of {service_id}")
        (path,) = region.paths.logs.glob(pattern)
        document = json.loads(path.read_text())
        assert document["service_id"] == service_id
        assert document["endpoints"][0]["links"]
        assert document["stacks"]
        assert region.processes[service_id].alive


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def test_a_conductor_serves_its_metrics_and_those_of_its_computes(region: Region) -> None:
    """The configuration gets [metrics], the conductor is started again."""
    service_id = "c1-conductor-2"
    path: Path = region.paths.config(service_id)
    log = region.paths.log(service_id)
    path.write_text(path.read_text() + '\n[metrics]\nlisten = "127.0.0.1:0"\n')
    region.kill(service_id)
    told_before = log.read_text().count("metrics address=")
    region.restart(service_id)
    wait_until(lambda: log.read_text().count("metrics address=") > told_before, "the metrics address")
    address = re.findall(r"metrics address=(\S+)", log.read_text())[-1]
    wait_until(lambda: "host.beat" in fetch(f"http://{address}/metrics"), "its methods")

    def of_the_compute() -> bool:
        try:
            return 'zcompute_bus_info{cell="c1"' in fetch(f"http://{address}/metrics?service=c1-compute-1")
        except urllib.error.HTTPError as error:  # 502 until the link is up
            return error.code != 502

    wait_until(of_the_compute, "the compute's metrics")
