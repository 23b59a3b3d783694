from pathlib import Path

from tests.orders import fresh, make_instance, make_order
from tests.unit.compute.test_commands import Agent
from zcompute.compute.generations import Record
from zcompute.compute.observer import differences, observation
from zcompute.compute.resources import account
from zcompute.compute.virt.driver import Domain
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import POWER_NOSTATE, POWER_RUNNING, POWER_SHUTDOWN


def record(uuid: str, grant: int = 1) -> Record:
    return Record("node1", uuid, 1, "t1", [], grant=grant)


def test_only_what_changed_is_reported() -> None:
    running = {"a": Domain("a", POWER_RUNNING), "b": Domain("b", POWER_SHUTDOWN)}
    granted = [record("a"), record("b"), record("c")]
    first = differences(granted, running, {})
    assert [(seen.instance_uuid, seen.power_state, seen.gone) for seen in first] == [
        ("a", POWER_RUNNING, False),
        ("b", POWER_SHUTDOWN, False),
        ("c", POWER_NOSTATE, True),
    ]
    reported = {(seen.host, seen.instance_uuid): seen for seen in first}
    assert differences(granted, running, reported) == []
    assert [seen.instance_uuid for seen in differences(granted, {**running, "c": running["a"]}, reported)] == ["c"]


def test_a_new_grant_is_reported_anew() -> None:
    domain = Domain("a", POWER_RUNNING)
    reported = {("node1", "a"): observation(record("a"), domain)}
    assert [seen.generation for seen in differences([record("a", grant=2)], {"a": domain}, reported)] == [2]


def test_a_domain_that_vanished_is_reported_gone_once(tmp_path: Path) -> None:
    agent, one = Agent(tmp_path), fresh()
    agent.spawn(make_order(one))
    agent.settle()
    agent.driver.destroy("node1", one, make_order(one))
    agent.observer.look("node1")
    (seen,) = agent.observations()
    assert seen.gone
    newest = agent.outbox.last_seq
    agent.observer.look("node1")
    assert agent.outbox.last_seq == newest


def test_an_instance_with_work_under_way_is_left_to_it(tmp_path: Path) -> None:
    agent, one = Agent(tmp_path), fresh()
    agent.spawn(make_order(one))
    agent.settle()
    agent.driver.destroy("node1", one, make_order(one))
    agent.destroy(make_order(one, generation=2, step="destroy", reporter_generation=0))
    agent.observer.look("node1")
    assert not any(seen.gone for seen in agent.observations())
    agent.settle()


def test_resources_are_what_runs(tmp_path: Path) -> None:
    agent, one = Agent(tmp_path), fresh()
    agent.driver.spawn("node1", make_instance(one), make_order(one))
    agent.observer.look("node1")
    (found,) = agent.observer.resources()
    assert (found.domains, found.ungranted, found.used) == (1, 1, Amounts(vcpus=1, memory_mb=512, disk_gb=1))
    empty = account(HostInventory(name="node1", total=Amounts(vcpus=1)), [], frozenset())
    assert (empty.used, empty.domains) == (Amounts(), 0)
