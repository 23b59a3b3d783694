"""To whom an agent reports, under which epoch; and what its process has, and has not."""

import signal

import msgspec
import psutil
import pytest

from tests.cluster.agent_cell import HOSTS, Cell, call, eventually, kill, spawn_request
from tests.orders import fresh, make_order
from zcompute.objects.errors import CommandRefused
from zcompute.objects.methods import SPAWN
from zcompute.objects.partition import PARTITIONS
from zcompute.objects.report import (
    VERDICT_APPLIED,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    Observation,
)


def test_a_new_epoch_reports_every_granted_instance(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    uuids = [fresh() for _ in range(20)]
    for number, one in enumerate(uuids):
        call(link, SPAWN, spawn_request(make_order(one, host=HOSTS[number % 2])))
    eventually("all are reported", lambda: all(conductor.observations(one) for one in uuids))
    kill(agent)
    conductor.got.clear()
    conductor.attached.clear()
    cell.start_agent()
    eventually("all are reported again", lambda: all(conductor.observations(one) for one in uuids))
    assert conductor.results() == []


def test_a_report_without_its_owner_goes_to_the_new_one(cell: Cell) -> None:
    old, new = cell.conductors
    old.verdict = lambda _: VERDICT_NOT_OWNER
    cell.start_agent()
    link = old.ready()
    new.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the old owner turned it away twice", lambda: len(old.results(one)) > 1)
    assert new.results(one) == []
    cell.publish(["k2"] * PARTITIONS, version=2)
    eventually("the new owner has it", lambda: new.results(one))
    eventually("beats go to the new owner", lambda: {*HOSTS} <= {*new.beats})


def test_a_report_that_is_not_yet_wanted_comes_again(cell: Cell) -> None:
    conductor = cell.conductors[0]
    conductor.verdict = lambda body: VERDICT_NOT_YET if isinstance(body, Observation) else VERDICT_APPLIED
    cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the observation came twice", lambda: len(conductor.observations(one)) > 1)
    assert len(conductor.results(one)) == 1


def test_what_a_dead_owner_never_answered_goes_to_the_next(cell: Cell) -> None:
    old, new = cell.conductors
    old.verdict = lambda _: None
    cell.start_agent()
    link = old.ready()
    new.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the old owner has the result", lambda: old.results(one))
    old.endpoint.close()
    cell.publish(["k2"] * PARTITIONS, version=2)
    eventually("the new owner has it", lambda: new.results(one))


def test_a_superseded_agent_falls_silent_for_that_host_only(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent()
    link = conductor.ready()
    one, two = fresh(), fresh()
    conductor.epochs["node1"] += 1
    conductor.attached.clear()
    conductor.endpoint.close()
    again = cell._conductor("k1")
    again.epochs = conductor.epochs
    cell.conductors[0] = again
    cell.publish(["k1"] * PARTITIONS, version=3)
    link = eventually(
        "the other host is attached alone",
        lambda: next((link for link, epochs in again.attached.items() if [*epochs] == ["node2"]), None),
    )
    assert "ALARM" in cell.log_text()
    again.beats.clear()
    with pytest.raises(CommandRefused) as refused:
        call(link, SPAWN, spawn_request(make_order(one, owner_epoch=3)))
    assert refused.value.details["reason"] == "host_superseded"
    call(link, SPAWN, spawn_request(make_order(two, host="node2", owner_epoch=3)))
    eventually("the other host works", lambda: again.results(two))
    eventually("the other host beats", lambda: len(again.beats) > 2)
    assert {*again.beats} == {"node2"}


def test_the_process_knows_no_database_and_listens_nowhere(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))

    process = psutil.Process(agent.pid)
    assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    agent.send_signal(signal.SIGUSR1)
    modules = cell.directory / "modules"
    eventually("the agent lists its modules", lambda: modules.exists() and modules.read_text())
    loaded = {name.split(".")[0] for name in modules.read_text().split("\n")}
    assert loaded.isdisjoint({"pymysql", "sqlalchemy", "sqlite3", "_sqlite3", "alembic", "MySQLdb"})
    ours = {name for name in modules.read_text().split("\n") if name.startswith("zcompute.")}
    assert not any(name.startswith(("zcompute.db", "zcompute.conductor", "zcompute.cells")) for name in ours)
    open_files = [file.path for file in process.open_files()]
    assert not any("mysql" in path or path.endswith(".db") for path in open_files)


def test_an_agent_follows_deltas_of_the_map_and_asks_for_all_of_it_when_one_is_not_for_it(cell: Cell) -> None:
    first, second = cell.conductors
    cell.start_agent()
    first.ready()
    cell.publish(["k1"] * PARTITIONS, version=5)
    eventually("the whole map is learnt", lambda: "map learnt term=1 version=5" in cell.log_text())
    before = first.cell_map
    cell.publish_delta(before, ["k2"] * PARTITIONS, version=6)
    eventually("the delta is learnt", lambda: "map learnt term=1 version=6" in cell.log_text())
    asked = first.calls.count("map_get") + second.calls.count("map_get")
    one = fresh()
    eventually("the other is attached", lambda: second.ready())
    call(second.ready(), SPAWN, spawn_request(make_order(one, owner_epoch=6)))
    eventually("reports go where the delta says", lambda: second.results(one))
    assert first.calls.count("map_get") + second.calls.count("map_get") == asked
    unknown = msgspec.structs.replace(first.cell_map, version=8)
    cell.publish_delta(unknown, ["k1"] * PARTITIONS, version=9)
    eventually("it asks for all", lambda: "map learnt term=1 version=9" in cell.log_text())
    assert first.calls.count("map_get") + second.calls.count("map_get") > asked
