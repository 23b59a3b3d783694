import json
import os
from pathlib import Path

import gevent
import pytest

from tests.orders import fresh, make_instance, make_order
from zcompute.compute.errors import DomainExists, DriverError, HostUnknown
from zcompute.compute.virt.driver import Driver
from zcompute.compute.virt.fake import FakeDriver
from zcompute.compute.virt.fake_log import domain_log_path, parse_lines, read_domain_log
from zcompute.config import FakeHostConfig
from zcompute.objects.command import StepArguments
from zcompute.objects.flavor import Amounts
from zcompute.objects.instance import POWER_RUNNING, POWER_SHUTDOWN

HOSTS = [FakeHostConfig(name="node1", vcpus=4, memory_mb=1024, disk_gb=10), FakeHostConfig(name="node2")]


def made(directory: Path, build_ms: int = 0) -> FakeDriver:
    return FakeDriver(directory, HOSTS, build_ms=build_ms)


def test_hosts_are_as_large_as_configured(tmp_path: Path) -> None:
    driver: Driver = made(tmp_path)
    assert driver.hosts() == ["node1", "node2"]
    assert driver.inventory("node1").total == Amounts(vcpus=4, memory_mb=1024, disk_gb=10)
    with pytest.raises(HostUnknown):
        driver.inventory("node3")
    with pytest.raises(HostUnknown):
        driver.domains("node3")


def test_a_domain_lives_in_its_hosts_file_and_outlives_the_driver(tmp_path: Path) -> None:
    driver, one = made(tmp_path), fresh()
    order = make_order(one, generation=3, attempt=2)
    assert driver.spawn("node1", make_instance(one), order).power_state == POWER_RUNNING
    driver.close()
    again = made(tmp_path)
    assert again.domains("node1")[one].amounts == Amounts(vcpus=1, memory_mb=512, disk_gb=1)
    assert again.domains("node2") == {}
    line = json.loads(domain_log_path(tmp_path, "node1").read_text())
    expected = {"op": "spawn", "uuid": one, "task_id": "t1", "step": "spawn", "attempt": 2, "generation": 3}
    assert expected.items() <= line.items()
    assert line["pid"] == os.getpid()
    assert line["at"] > 1_600_000_000_000_000


def test_spawning_what_exists_is_refused_and_destroying_what_does_not_writes_nothing(tmp_path: Path) -> None:
    driver, one = made(tmp_path), fresh()
    driver.spawn("node1", make_instance(one), make_order(one))
    with pytest.raises(DomainExists):
        driver.spawn("node1", make_instance(one), make_order(one))
    driver.destroy("node1", fresh(), make_order(one))
    driver.destroy("node1", one, make_order(one))
    driver.destroy("node1", one, make_order(one))
    found = read_domain_log(domain_log_path(tmp_path, "node1"))
    assert (found.spawns, found.destroys, found.running) == ({one: 1}, {one: 1}, frozenset())


def test_two_agents_on_one_host_see_one_hypervisor(tmp_path: Path) -> None:
    first, second, one = made(tmp_path), made(tmp_path), fresh()
    first.spawn("node1", make_instance(one), make_order(one))
    assert one in second.domains("node1")
    with pytest.raises(DomainExists):
        second.spawn("node1", make_instance(one), make_order(one))
    second.destroy("node1", one, make_order(one))
    assert first.domains("node1") == {}


def test_two_builds_of_one_domain_at_once_make_one(tmp_path: Path) -> None:
    first, second, one = made(tmp_path, build_ms=20), made(tmp_path, build_ms=20), fresh()
    builds = [gevent.spawn(d.spawn, "node1", make_instance(one), make_order(one)) for d in (first, second)]
    gevent.joinall(builds, timeout=5)
    assert sorted(type(build.exception).__name__ for build in builds) == ["DomainExists", "NoneType"]
    assert read_domain_log(domain_log_path(tmp_path, "node1")).spawns == {one: 1}


def test_a_torn_line_is_ended_and_the_next_one_counts(tmp_path: Path) -> None:
    one, path = fresh(), domain_log_path(tmp_path, "node1")
    path.write_text('{"op": "spawn", "uu')
    assert read_domain_log(path).running == frozenset()
    driver = made(tmp_path)
    driver.spawn("node1", make_instance(one), make_order(one))
    found = read_domain_log(path)
    assert (found.running, found.unreadable_lines) == ({one}, 1)
    assert made(tmp_path).domains("node1").keys() == {one}


def test_lines_of_no_meaning_are_counted() -> None:
    lines, end, unreadable = parse_lines(b'{"op":"spawn","uuid":"a"}\nnoise\n{"op":"dance","uuid":"a"}\n{"op"')
    assert ([line.uuid for line in lines], unreadable) == (["a"], 2)
    assert end == len(b'{"op":"spawn","uuid":"a"}\nnoise\n{"op":"dance","uuid":"a"}\n')


def test_a_host_that_never_ran_anything_has_an_empty_history(tmp_path: Path) -> None:
    assert read_domain_log(tmp_path / "nothing").running == frozenset()


def test_a_directory_that_cannot_be_is_a_driver_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DriverError, match="expected a directory"):
        made(tmp_path / "file")


def prepared(directory: Path) -> tuple[FakeDriver, str, StepArguments]:
    """A domain of node1 that node2 awaits."""
    driver, one = made(directory), fresh()
    driver.spawn("node1", make_instance(one), make_order(one))
    done = driver.prepare("node2", make_instance(one), StepArguments(), make_order(one))
    return driver, one, StepArguments(peer_host="node2", peer=done.answer)


def migrate(driver: FakeDriver, one: str, arguments: StepArguments) -> None:
    driver.migrate("node1", make_instance(one), arguments, make_order(one))


def test_a_live_migration_hands_over_once_however_often_it_is_begun(tmp_path: Path) -> None:
    driver, one, arguments = prepared(tmp_path)
    for _ in range(2):
        migrate(driver, one, arguments)
        assert one not in driver.domains("node1")
        assert driver.domains("node2")[one].power_state == POWER_RUNNING


def test_what_its_destination_was_told_to_destroy_is_not_handed_over_and_runs_on(tmp_path: Path) -> None:
    driver, one, arguments = prepared(tmp_path)
    driver.destroy("node2", one, make_order(one))
    with pytest.raises(DriverError, match="does not await"):
        migrate(driver, one, arguments)
    assert driver.domains("node1")[one].power_state == POWER_RUNNING
    assert driver.domains("node2") == {}


def test_a_migration_that_is_aborted_behind_its_agents_death_leaves_one_that_runs(tmp_path: Path) -> None:
    driver, one, arguments = prepared(tmp_path)
    driver.send("node1", make_instance(one), arguments, make_order(one))  # as the death left it: stopped, not there yet
    slow = FakeDriver(tmp_path, HOSTS, step_ms=50)
    waiter = gevent.spawn(migrate, slow, one, arguments)
    gevent.sleep(0.01)
    slow.abort("node1", make_instance(one), arguments, make_order(one))
    with pytest.raises(DriverError, match="aborted"):
        waiter.get(timeout=5)
    assert (slow.domains("node1")[one].power_state, slow.domains("node2")) == (POWER_RUNNING, {})


@pytest.mark.parametrize("word", ["complete", "abort"])
def test_a_migration_that_takes_long_ends_at_once_when_it_is_told_to(tmp_path: Path, word: str) -> None:
    _, one, arguments = prepared(tmp_path)
    slow = FakeDriver(tmp_path, HOSTS, step_ms=60_000)
    getattr(slow, word)("node1", make_instance(one), arguments, make_order(one))  # nothing is under way yet
    waiter = gevent.spawn(migrate, slow, one, arguments)
    gevent.sleep(0)
    getattr(slow, word)("node1", make_instance(one), arguments, make_order(one))
    if word == "abort":
        with pytest.raises(DriverError, match="aborted"):
            waiter.get(timeout=5)
    else:
        waiter.get(timeout=5)
    assert (one in slow.domains("node1"), one in slow.domains("node2")) == (word == "abort", word == "complete")


def test_a_migration_that_had_arrived_when_its_agent_died_is_done_and_not_aborted(tmp_path: Path) -> None:
    driver, one, arguments = prepared(tmp_path)
    migrate(driver, one, arguments)
    driver.spawn("node1", make_instance(one), make_order(one))
    driver.send("node1", make_instance(one), arguments, make_order(one))  # the source's copy, which should have gone
    slow = FakeDriver(tmp_path, HOSTS, step_ms=20)
    waiter = gevent.spawn(migrate, slow, one, arguments)
    gevent.sleep(0)
    slow.abort("node1", make_instance(one), arguments, make_order(one))
    waiter.get(timeout=5)
    assert (one in slow.domains("node1"), slow.domains("node2")[one].power_state) == (False, POWER_RUNNING)
    assert driver.stop("node2", make_instance(one), arguments, make_order(one)).domain.power_state == POWER_SHUTDOWN
