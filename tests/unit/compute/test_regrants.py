"""Which owner is asked for what, and where an interrupted question goes on."""

from pathlib import Path

import pytest

from tests.orders import fresh, make_order
from zcompute.compute.generations import COMMAND_DESTROY, COMMAND_SPAWN, Generations
from zcompute.compute.regrants import Pending
from zcompute.compute.settings import Settings
from zcompute.objects.messages.hosts import Grant, HostGrantsReply
from zcompute.objects.partition import PARTITIONS, PartitionMap

HALF = PARTITIONS // 2
MAP = PartitionMap(cell="c1", version=1, owners=["k1"] * HALF + ["k2"] * (HALF - 1) + [""], epochs=[1] * PARTITIONS)


def test_each_owner_is_asked_for_its_own_and_nobody_for_what_nobody_owns() -> None:
    asked = Pending().by_owner(MAP)
    assert {owner: len(partitions) for owner, partitions in asked.items()} == {"k1": HALF, "k2": HALF - 1}
    assert Pending().by_owner(PartitionMap(cell="c1")) == {}


def test_an_interrupted_question_goes_on_where_it_stopped_at_whoever_owns_then() -> None:
    pending = Pending()
    partitions = [0, 1, 2]
    more = pending.answered(HostGrantsReply(grants=[], owner_epochs={0: 1, 1: 1}, after="b"), partitions)
    assert more == [0, 1], "the third was not answered"
    assert pending.request("h", more).after == "b"
    assert pending.request("h", partitions).after == "", "no page of the third may be left out"
    assert pending.answered(HostGrantsReply(grants=[], owner_epochs={0: 2, 1: 2, 2: 2}), partitions) == []
    assert not {0, 1, 2} & pending.after.keys()
    assert len(pending.after) == PARTITIONS - 3


@pytest.fixture
def generations(tmp_path: Path) -> Generations:
    return Generations(tmp_path / "generations", Settings(observations_max=2), 0.0)


def _grant(uuid: str, generation: int, reporter_generation: int) -> Grant:
    return Grant(instance_uuid=uuid, generation=generation, reporter_generation=reporter_generation)


def test_a_grant_anew_is_durable_and_its_generation_refuses_older_commands(
    generations: Generations, tmp_path: Path
) -> None:
    one = fresh()
    assert generations.regrant("node1", _grant(one, 5, 2), 0.0)
    assert not generations.regrant("node1", _grant(one, 5, 2), 0.0)
    generations.close()
    again = Generations(tmp_path / "generations", Settings(), 0.0)
    record = again.get("node1", one)
    assert record is not None
    assert (record.generation, record.grant, again.granted_count()) == (5, 2, 1)
    assert again.find(make_order(one, generation=4))[0].value == "stale"


@pytest.mark.parametrize("command", [COMMAND_SPAWN, COMMAND_DESTROY])
def test_what_was_commanded_since_is_newer_than_a_grant_that_comes_late(generations: Generations, command: str) -> None:
    one = fresh()
    generations.begin(make_order(one, generation=2), command, 0.0)
    assert not generations.regrant("node1", _grant(one, 1, 1), 0.0)
    assert not generations.regrant("node1", _grant(one, 2, 1), 0.0)
    record = generations.get("node1", one)
    assert record is not None
    assert record.grant == 0
    assert generations.regrant("node1", _grant(one, 3, 1), 0.0)


def test_grants_anew_are_bounded(generations: Generations) -> None:
    assert [generations.regrant("node1", _grant(fresh(), 1, 1), 0.0) for _ in range(3)] == [True, True, False]
    assert generations.granted_count() == 2
