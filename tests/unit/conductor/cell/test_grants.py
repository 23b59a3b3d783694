"""What the owner of a partition says of the instances that a host reports."""

from types import SimpleNamespace

import msgspec
import pytest

from tests.orders import fresh, make_instance
from zcompute.bus.errors import Forbidden, InvalidRequest, NotOwner
from zcompute.conductor.cell.grants import Grants
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.fellows import Fellows
from zcompute.objects.instance import VM_ACTIVE, VM_BUILDING, VM_DELETED
from zcompute.objects.messages.hosts import HostGrantsReply, HostGrantsRequest
from zcompute.objects.partition import PARTITIONS, partition_of

ALL = list(range(PARTITIONS))


class Ledger:
    map = SimpleNamespace(version=3)

    def __init__(self):
        self.epochs = dict.fromkeys(ALL, 7)

    def owner_epochs(self, partitions):
        return {partition: self.epochs[partition] for partition in partitions if partition in self.epochs}


class Store:
    def __init__(self):
        self.rows = []
        self.meanwhile = lambda: None

    def scan(self, table, *, partitions, where, limit, after):
        rows = sorted((row for row in self.rows if row.host == where["host"]), key=lambda row: row.uuid)
        rows = [row for row in rows if partition_of(row.uuid) in partitions and (after is None or row.uuid > after[0])]
        self.meanwhile()
        return rows[:limit]


@pytest.fixture
def world():
    made = SimpleNamespace(ledger=Ledger(), store=Store(), cell="c1", endpoint=None)
    made.relayed = []
    made.relay = SimpleNamespace(grants=lambda request, context: made.relayed.append(request) or "the owner's")
    made.grants = Grants(made, made.relay, Fellows(None, "c1"), CellSettings(grants_rows=2))
    return made


def row(**changes):
    values = {"vm_state": VM_ACTIVE, "host": "h1", "generation": 2, "command_generation": 5, "launched_at_us": 1}
    return msgspec.structs.replace(make_instance(fresh()), **(values | changes))


def context(role="compute", cell="c1"):
    return SimpleNamespace(peer=SimpleNamespace(role=role, cell=cell, service_id="s1", hosts=frozenset({"h1"})))


def ask(world, **changes):
    values = {"host": "h1", "partitions": ALL}
    return world.grants.grants(HostGrantsRequest(**(values | changes)), context())


def test_pages_name_what_runs_on_the_host_and_nothing_else(world):
    mine = [row() for _ in range(3)]
    world.store.rows = [
        *mine, row(host="h2"), row(vm_state=VM_DELETED), row(vm_state=VM_BUILDING, launched_at_us=None),
    ]  # fmt: skip
    found, after = [], ""
    for _ in range(9):
        reply = ask(world, after=after)
        assert reply.owner_epochs == dict.fromkeys(ALL, 7)
        found += reply.grants
        after = reply.after
        if not after:
            break
    assert [grant.instance_uuid for grant in found] == sorted(one.uuid for one in mine)
    assert {(grant.generation, grant.reporter_generation) for grant in found} == {(5, 2)}


def test_only_the_owner_answers_and_only_for_what_stayed_its_own_while_it_read(world):
    del world.ledger.epochs[3]
    world.store.meanwhile = lambda: world.ledger.epochs.update({4: 8})
    reply = ask(world, partitions=[2, 3, 4])
    assert reply == HostGrantsReply(grants=[], owner_epochs={2: 7})
    world.ledger.epochs.clear()
    assert ask(world, partitions=[2, 3]) == "the owner's"
    assert len(world.relayed) == 1


def test_a_relayed_question_is_not_handed_on_again(world):
    request = HostGrantsRequest(host="h9", partitions=[1])
    assert world.grants.relayed(request, context("conductor")).owner_epochs == {1: 7}
    world.ledger.epochs.clear()
    with pytest.raises(NotOwner):
        world.grants.relayed(request, context("conductor"))
    for stranger in (context("compute"), context("conductor", "c2")):
        with pytest.raises(Forbidden):
            world.grants.relayed(request, stranger)
    assert world.relayed == []


def test_an_agent_asks_for_its_own_hosts_and_of_partitions_that_there_are(world):
    with pytest.raises(Forbidden):
        ask(world, host="h2")
    for partitions in ([], [PARTITIONS], [-1]):
        with pytest.raises(InvalidRequest):
            ask(world, partitions=partitions)
