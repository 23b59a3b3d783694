"""Which owner is asked for what, and where an interrupted question goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.orders import fresh, make_order
from tests.unit.conductor.ledger_world import wait_for
from zcompute.compute.fences import Fences
from zcompute.compute.generations import COMMAND_DESTROY, COMMAND_SPAWN, Generations
from zcompute.compute.regrants import Pending, Regrants
from zcompute.compute.settings import Settings
from zcompute.objects.messages.hosts import Grant, HostGrantsReply, HostGrantsRequest
from zcompute.objects.partition import PARTITIONS, PartitionMap, partition_of

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


class Owner:
    """Owns everything; an instance becomes the host's when its spawn's result comes, after ``silent`` questions."""

    def __init__(self, uuid: str, silent: int) -> None:
        self.uuid = uuid
        self.silent = silent
        self.asked: list[list[int]] = []

    def call(self, method: Any, request: HostGrantsRequest, *, timeout_ms: int) -> HostGrantsReply:
        self.asked.append(request.partitions)
        known = len(self.asked) > self.silent
        return HostGrantsReply(
            grants=[_grant(self.uuid, 1, 1)] if known else [], owner_epochs=dict.fromkeys(request.partitions, 1)
        )


class Looks:
    """The observer: the host runs one domain."""

    def __init__(self, uuid: str, generations: Generations) -> None:
        self.uuid = uuid
        self.generations = generations

    def look(self, host: str) -> None:
        """It looks as often as it is asked."""

    def unknown(self, host: str) -> list[str]:
        return [] if self.generations.granted_count() else [self.uuid]


def test_a_domain_that_nobody_granted_at_first_is_asked_for_again_and_alone(
    generations: Generations, tmp_path: Path
) -> None:
    one = fresh()
    owner = Owner(one, silent=3)
    whole = PartitionMap(cell="c1", version=1, owners=["k1"] * PARTITIONS, epochs=[1] * PARTITIONS)
    links: Any = SimpleNamespace(map=whole, way_to_owner=lambda _: owner)
    looks: Any = Looks(one, generations)
    settings = Settings(unknown_retry_ms_min=5, unknown_retry_ms_max=10)
    regrants = Regrants(links, Fences(tmp_path / "fences"), generations, looks, settings)
    done: list[str] = []
    regrants.on_done = done.append
    regrants.begin("node1")
    wait_for(lambda: generations.granted_count() == 1)
    regrants.stop()
    assert done == ["node1"], "commands are obeyed after the first round"
    assert [len(partitions) for partitions in owner.asked[1:]] == [1] * (len(owner.asked) - 1)
    assert owner.asked[-1] == [partition_of(one)]
