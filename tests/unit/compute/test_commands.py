"""Commands and steps together, without a bus: what is refused, what is done once, what a failure leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gevent
import pytest

from tests.orders import fresh, make_instance, make_order
from zcompute.bus import Busy, CallContext, InvalidRequest
from zcompute.compute.commands import Commands
from zcompute.compute.doubt import Doubt
from zcompute.compute.errors import DriverError
from zcompute.compute.fences import EPOCH_MAX, Fences
from zcompute.compute.generations import Generations
from zcompute.compute.hosts import Hosts, HostSession
from zcompute.compute.links import ConductorLinks
from zcompute.compute.observer import Observer
from zcompute.compute.outbox import Outbox
from zcompute.compute.reporter import Reporter
from zcompute.compute.settings import Settings
from zcompute.compute.steps import Steps
from zcompute.compute.virt.driver import Domain
from zcompute.compute.virt.fake import FakeDriver
from zcompute.compute.virt.fake_log import domain_log_path, read_domain_log
from zcompute.compute.workers import Workers
from zcompute.config import FakeHostConfig
from zcompute.objects.command import (
    AdoptRequest,
    CommandReply,
    DestroyRequest,
    DomainsRequest,
    ForgetRequest,
    Order,
    SpawnRequest,
)
from zcompute.objects.errors import CommandRefused, HostNotFound
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import Instance
from zcompute.objects.report import OUTCOME_DONE, OUTCOME_FAILED, Observation

CONTEXT = cast(CallContext, None)


class RefusingDriver(FakeDriver):
    """Fails as told."""

    spawn_error: Exception | None = None
    destroy_error: Exception | None = None
    half_built: bool = False

    def spawn(self, host: str, instance: Instance, order: Order) -> Domain:
        if self.half_built:
            super().spawn(host, instance, order)
        if self.spawn_error is not None:
            raise self.spawn_error
        return super().spawn(host, instance, order)

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        if self.destroy_error is not None:
            raise self.destroy_error
        super().destroy(host, uuid, order)


class Agent:
    """The parts of an agent behind the bus."""

    def __init__(self, directory: Path, **limits: int) -> None:
        self.directory = directory
        self.settings = Settings(**limits)
        config = [FakeHostConfig(name="node1"), FakeHostConfig(name="node2")]
        self.driver = RefusingDriver(directory / "hosts", config)
        self.fences = Fences(directory / "fences")
        self.doubt = Doubt(directory / "complete")
        self.generations = Generations(directory / "generations", self.settings, 0.0)
        self.outbox = Outbox(directory / "outbox", self.settings)
        self.workers = Workers(2, self.settings.waiting_max)
        self.reporter = Reporter(self.outbox, self.settings)
        self.observer = Observer(self.driver, self.generations, self.reporter, self.workers.busy)
        self.steps = Steps(self.driver, self.generations, self.reporter, self.observer)
        inventories = [self.driver.inventory(name) for name in self.driver.hosts()]
        self.hosts = Hosts(inventories, "agent1", cast(ConductorLinks, None), self.settings)
        for session in self.sessions():
            session.epoch = 1
        self.commands = Commands(
            self.driver,
            self.hosts,
            self.fences,
            self.generations,
            self.workers,
            self.steps,
            self.reporter,
            self.settings,
            self.doubt,
        )

    def sessions(self) -> list[HostSession]:
        return [session for name in self.driver.hosts() if (session := self.hosts.get(name)) is not None]

    def spawn(self, order: Order) -> CommandReply:
        return self.commands.spawn(SpawnRequest(order=order, instance=make_instance(order.instance_uuid)), CONTEXT)

    def destroy(self, order: Order) -> CommandReply:
        return self.commands.destroy(DestroyRequest(order=order), CONTEXT)

    def adopt(self, order: Order) -> CommandReply:
        return self.commands.adopt(AdoptRequest(order=order), CONTEXT)

    def forget(self, order: Order) -> CommandReply:
        return self.commands.forget(ForgetRequest(order=order), CONTEXT)

    def settle(self) -> None:
        """Wait until no work is under way."""
        with gevent.Timeout(5):
            while len(self.workers):
                gevent.sleep(0)

    def outcomes(self) -> list[str]:
        return [result.outcome for result in self.outbox.results()]

    def observations(self) -> list[Observation]:
        bodies = self.outbox._bodies.values()
        return [body for body in bodies if isinstance(body, Observation)]

    def spawns(self, host: str = "node1") -> dict[str, int]:
        return dict(read_domain_log(domain_log_path(self.directory / "hosts", host)).spawns)

    def killed(self) -> "Agent":
        """Another agent on what this one left on disk, without any of its memory."""
        for part in (self.fences, self.generations, self.outbox):
            part.close()
        again = Agent(self.directory)
        again.steps.settle(again.outbox.results())
        return again


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"host": "elsewhere"}, HostNotFound, "elsewhere"),
        ({"partition": 300}, InvalidRequest, "partition"),
        ({"partition": -1}, InvalidRequest, "partition"),
        ({"owner_epoch": -1}, InvalidRequest, "owner epoch"),
        ({"owner_epoch": EPOCH_MAX + 1}, InvalidRequest, "owner epoch"),
    ],
)
def test_an_order_that_cannot_be_is_refused_and_changes_nothing(
    agent: Agent, changes: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        agent.spawn(make_order(fresh(), **changes))
    assert agent.generations.records() == []
    assert set(agent.fences.epochs) == {0}


def test_an_order_and_its_instance_must_be_the_same(agent: Agent) -> None:
    with pytest.raises(InvalidRequest, match="instance"):
        agent.commands.spawn(SpawnRequest(order=make_order(fresh()), instance=make_instance(fresh())), CONTEXT)


def test_a_host_without_an_epoch_or_with_another_agent_obeys_nobody(agent: Agent) -> None:
    first, second = agent.sessions()
    first.epoch, second.superseded = None, True
    with pytest.raises(Busy):
        agent.spawn(make_order(fresh()))
    with pytest.raises(CommandRefused, match="another agent"):
        agent.spawn(make_order(fresh(), host="node2"))


def test_a_command_raises_the_fence_for_the_whole_partition(agent: Agent) -> None:
    order = make_order(fresh(), owner_epoch=5)
    agent.spawn(order)
    with pytest.raises(CommandRefused, match="owner since 5"):
        agent.adopt(make_order(order.instance_uuid, owner_epoch=4, generation=9))
    assert agent.generations.find(make_order(order.instance_uuid, generation=2))[0].value == "new"


def test_a_build_and_a_delete_commanded_at_once_end_in_that_order(agent: Agent) -> None:
    one = fresh()
    agent.spawn(make_order(one))
    agent.destroy(make_order(one, generation=1, step="destroy", reporter_generation=0))
    agent.settle()
    assert agent.outcomes() == [OUTCOME_DONE, OUTCOME_DONE]
    assert agent.spawns() == {one: 1}
    assert agent.driver.domains("node1") == {}
    assert agent.observations() == []


def test_a_delete_that_overtakes_a_waiting_build_keeps_it_from_being_built(tmp_path: Path) -> None:
    agent, one = Agent(tmp_path), fresh()
    agent.spawn(make_order(one))
    agent.destroy(make_order(one, generation=2, task_id="t2", step="destroy", reporter_generation=0))
    agent.settle()
    assert agent.spawns() == {}
    assert [result.task_id for result in agent.outbox.results()] == ["t2"]


def test_a_destroy_of_what_was_never_here_is_done_and_keeps_a_late_spawn_away(agent: Agent) -> None:
    one = fresh()
    order = make_order(one, generation=2, task_id="t2", step="destroy", reporter_generation=0)
    agent.destroy(order)
    agent.settle()
    assert agent.outcomes() == [OUTCOME_DONE]
    with pytest.raises(CommandRefused):
        agent.spawn(make_order(one))
    agent.forget(order)
    assert agent.generations.records() == []


def test_without_a_grant_nothing_is_observed(agent: Agent) -> None:
    agent.spawn(make_order(fresh(), reporter_generation=0))
    agent.settle()
    assert agent.outcomes() == [OUTCOME_DONE]
    assert agent.observations() == []


def test_an_adopter_can_grant_what_runs(agent: Agent) -> None:
    one = fresh()
    agent.spawn(make_order(one, reporter_generation=0))
    agent.settle()
    agent.adopt(make_order(one, generation=2, reporter_generation=4))
    assert [seen.generation for seen in agent.observations()] == [4]
    agent.adopt(make_order(fresh(), reporter_generation=4))
    assert len(agent.generations.granted()) == 1


def test_a_failed_build_says_why_and_leaves_nothing(agent: Agent) -> None:
    agent.driver.spawn_error, agent.driver.half_built = DriverError("no more memory"), True
    order = make_order(fresh())
    agent.spawn(order)
    agent.settle()
    (result,) = agent.outbox.results()
    assert (result.outcome, result.message) == (OUTCOME_FAILED, "no more memory")
    assert agent.driver.domains("node1") == {}
    assert agent.generations.granted() == []
    reply = agent.spawn(order)
    assert (reply.last_outcome, reply.last_message) == (OUTCOME_FAILED, "no more memory")
    assert agent.adopt(make_order(order.instance_uuid, generation=2)).last_outcome == OUTCOME_FAILED


def test_an_error_nobody_expected_is_a_failure_without_its_inside(agent: Agent) -> None:
    agent.driver.spawn_error = KeyError("secret inside")
    agent.spawn(make_order(fresh()))
    agent.settle()
    assert [result.message for result in agent.outbox.results()] == ["internal error: KeyError"]


def test_a_failed_build_that_cannot_be_cleared_is_not_called_failed(agent: Agent) -> None:
    agent.driver.spawn_error, agent.driver.half_built = DriverError("broken"), True
    agent.driver.destroy_error = DriverError("also broken")
    order = make_order(fresh())
    agent.spawn(order)
    agent.settle()
    assert agent.outcomes() == []
    agent.driver.spawn_error, agent.driver.half_built, agent.driver.destroy_error = None, False, None
    agent.spawn(order)
    agent.settle()
    assert agent.outcomes() == [OUTCOME_DONE]
    assert agent.spawns() == {order.instance_uuid: 1}


def test_a_failed_destroy_keeps_the_grant(agent: Agent) -> None:
    one = fresh()
    agent.spawn(make_order(one))
    agent.settle()
    agent.driver.destroy_error = DriverError("stuck")
    agent.destroy(make_order(one, generation=2, step="destroy", reporter_generation=0))
    agent.settle()
    assert agent.outcomes() == [OUTCOME_DONE, OUTCOME_FAILED]
    assert len(agent.generations.granted()) == 1


@pytest.mark.parametrize(
    "limits",
    [{"results_max": 1}, {"tombstones_max": 1}, {"observations_max": 1}],
    ids=lambda limits: next(iter(limits)),
)
def test_at_a_limit_the_sender_is_told_when_to_come_again(tmp_path: Path, limits: dict[str, int]) -> None:
    agent = Agent(tmp_path, **limits)
    agent.spawn(make_order(fresh()))
    if "tombstones_max" not in limits:
        agent.settle()
    with pytest.raises(Busy) as busy:
        agent.spawn(make_order(fresh()))
    assert busy.value.retry_after_ms == agent.settings.busy_retry_ms


def test_results_of_commands_under_way_count_against_the_limit(tmp_path: Path) -> None:
    agent = Agent(tmp_path, results_max=2)
    agent.spawn(make_order(fresh()))
    agent.spawn(make_order(fresh()))
    with pytest.raises(Busy):
        agent.spawn(make_order(fresh()))
    agent.settle()
    agent.outbox.forget([entry.seq for entry in agent.outbox.entries()])
    agent.spawn(make_order(fresh()))


def test_with_a_full_disk_nothing_is_built_but_things_can_be_deleted(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fresh()
    agent.spawn(make_order(one))
    agent.settle()
    full = OSError(28, "No space left on device")

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        raise full

    monkeypatch.setattr("zcompute.compute.journal.os.pwrite", pwrite)
    refused = make_order(fresh())
    for _ in range(2):
        with pytest.raises(Busy, match="journal"):
            agent.spawn(refused)
    agent.destroy(make_order(one, generation=2, step="destroy", reporter_generation=0))
    agent.settle()
    assert agent.driver.domains("node1") == {}
    assert agent.outcomes() == [OUTCOME_DONE, OUTCOME_DONE]
    monkeypatch.undo()
    agent.generations.journal.tend(float("inf"))
    agent.outbox.journal.tend(float("inf"))
    agent.spawn(refused)
    agent.settle()
    again = agent.killed()
    assert again.outcomes() == [OUTCOME_DONE] * 3


def test_what_could_not_be_recorded_is_not_done_however_often_it_is_asked(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the mark that records are missing can be written: the next process would know nothing of it."""
    one = fresh()
    agent.spawn(make_order(one))
    agent.settle()
    agent.doubt.settle_here()
    agent.doubt.settle_on_disk()
    assert not agent.doubt.on_disk
    full = OSError(28, "No space left on device")

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        raise full

    monkeypatch.setattr("os.pwrite", pwrite)
    destroy = make_order(one, generation=2, step="destroy", reporter_generation=0)
    adopt = make_order(one, generation=3)
    for _ in range(3):
        with pytest.raises(Busy):
            agent.destroy(destroy)
    for _ in range(2):
        with pytest.raises(Busy):
            agent.adopt(adopt)
        with pytest.raises(Busy):
            agent.spawn(make_order(fresh()))
    agent.settle()
    assert set(agent.driver.domains("node1")) == {one}
    monkeypatch.undo()
    agent.generations.journal.tend(float("inf"))
    agent.destroy(make_order(one, generation=3, step="destroy", reporter_generation=0))
    agent.settle()
    assert agent.driver.domains("node1") == {}


class Killed(BaseException):
    """The process dies here."""


def _die(*_: object, **__: object) -> None:
    raise Killed


DEATHS: list[Callable[[Agent], tuple[object, str]]] = [
    lambda agent: (agent.driver, "spawn"),
    lambda agent: (agent.reporter, "report"),
    lambda agent: (agent.generations, "finish"),
    lambda agent: (agent.observer, "report"),
]


@pytest.mark.parametrize("death", DEATHS, ids=["driver", "result", "end", "observation"])
def test_wherever_a_build_is_cut_off_it_is_built_once_and_its_result_comes(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, death: Callable[[Agent], tuple[object, str]]
) -> None:
    order = make_order(fresh())
    with monkeypatch.context() as patch:
        patch.setattr(*death(agent), _die)
        agent.generations.begin(order, "spawn", 0.0)
        with pytest.raises(Killed):
            agent.steps.spawn(order, make_instance(order.instance_uuid))
    again = agent.killed()
    again.spawn(order)
    again.settle()
    assert again.outcomes() == [OUTCOME_DONE]
    assert again.spawns() == {order.instance_uuid: 1}
    assert [record.grant for record in again.generations.records()] == [1]
    again.observer.report_all("node1")
    assert [seen.power_state for seen in again.observations()] == [1]


@pytest.mark.parametrize("death", [DEATHS[1], DEATHS[2]], ids=["result", "end"])
def test_wherever_a_destroy_is_cut_off_its_result_comes(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, death: Callable[[Agent], tuple[object, str]]
) -> None:
    one = fresh()
    agent.spawn(make_order(one))
    agent.settle()
    order = make_order(one, generation=2, step="destroy", reporter_generation=0)
    with monkeypatch.context() as patch:
        patch.setattr(*death(agent), _die)
        agent.generations.begin(order, "destroy", 0.0)
        with pytest.raises(Killed):
            agent.steps.destroy(order)
    again = agent.killed()
    assert again.outcomes() == [OUTCOME_DONE, OUTCOME_DONE]
    assert again.generations.granted() == []
    again.observer.report_all("node1")
    assert again.observations() == []


def test_a_failure_that_is_owed_is_not_tried_again_after_a_restart(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.driver.spawn_error = DriverError("no")
    order = make_order(fresh())
    with monkeypatch.context() as patch:
        patch.setattr(agent.generations, "finish", _die)
        agent.generations.begin(order, "spawn", 0.0)
        with pytest.raises(Killed):
            agent.steps.spawn(order, make_instance(order.instance_uuid))
    again = agent.killed()
    assert again.spawn(order).last_outcome == OUTCOME_FAILED
    again.settle()
    assert again.spawns() == {}


def test_an_inventory_is_what_the_session_was_made_of(agent: Agent) -> None:
    session = agent.hosts.get("node1")
    assert session is not None
    assert isinstance(session.inventory, HostInventory)
    assert agent.hosts.epochs() == {"node1": 1, "node2": 1}


def test_a_host_tells_page_by_page_what_is_on_its_hypervisor(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sorted(fresh() for _ in range(3))
    for uuid in made:
        agent.spawn(make_order(uuid))
    agent.settle()
    first = agent.commands.domains(DomainsRequest(host="node1", limit=2), CONTEXT)
    second = agent.commands.domains(DomainsRequest(host="node1", after=first.uuids[-1], limit=2), CONTEXT)
    assert (first.uuids, first.more, second.uuids, second.more) == (made[:2], True, made[2:], False)
    assert agent.commands.domains(DomainsRequest(host="node2"), CONTEXT).uuids == []
    with pytest.raises(HostNotFound):
        agent.commands.domains(DomainsRequest(host="elsewhere"), CONTEXT)
    with pytest.raises(InvalidRequest):
        agent.commands.domains(DomainsRequest(host="node1", limit=0), CONTEXT)

    def broken(host: str) -> None:
        raise DriverError("no hypervisor")

    monkeypatch.setattr(agent.driver, "domains", broken)
    with pytest.raises(Busy, match="no hypervisor"):
        agent.commands.domains(DomainsRequest(host="node1"), CONTEXT)
