"""What a STEP command does: every verb through the agent's parts on the fake driver, repeats, deaths, refusals."""

from pathlib import Path

import gevent
import pytest

from tests.orders import fresh, make_instance, make_order
from tests.unit.compute.test_commands import CONTEXT, Agent
from zcompute.bus import Busy, InvalidRequest
from zcompute.compute.verbs import VERBS
from zcompute.compute.virt.driver import Capabilities
from zcompute.compute.virt.fake_log import domain_log_path, parse_lines
from zcompute.objects.command import (
    CHECKSUM,
    SIZE_BYTES,
    VERB_ABORT,
    VERB_ACTIVATE,
    VERB_COMPLETE,
    VERB_MIGRATE,
    VERB_PAUSE,
    VERB_PREPARE,
    VERB_REBOOT,
    VERB_REBUILD,
    VERB_REOPEN,
    VERB_RESCUE,
    VERB_RESIZE,
    VERB_RESUME,
    VERB_SEND,
    VERB_SNAPSHOT,
    VERB_START,
    VERB_STOP,
    VERB_SUSPEND,
    VERB_UNPAUSE,
    VERB_UNRESCUE,
    CommandReply,
    Order,
    StepArguments,
    StepRequest,
)
from zcompute.objects.errors import CommandRefused
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING, POWER_SHUTDOWN, POWER_SUSPENDED
from zcompute.objects.report import OUTCOME_DONE, OUTCOME_FAILED

CHANGES = {
    VERB_START: POWER_RUNNING,
    VERB_STOP: POWER_SHUTDOWN,
    VERB_REBOOT: POWER_RUNNING,
    VERB_PAUSE: POWER_PAUSED,
    VERB_UNPAUSE: POWER_RUNNING,
    VERB_SUSPEND: POWER_SUSPENDED,
    VERB_RESUME: POWER_RUNNING,
    VERB_RESCUE: POWER_RUNNING,
    VERB_UNRESCUE: POWER_RUNNING,
    VERB_REBUILD: POWER_RUNNING,
    VERB_RESIZE: POWER_RUNNING,
    VERB_SEND: POWER_SHUTDOWN,
    VERB_REOPEN: POWER_RUNNING,
    VERB_SNAPSHOT: POWER_RUNNING,
}
MOVING = {VERB_PREPARE, VERB_ACTIVATE, VERB_MIGRATE, VERB_ABORT, VERB_COMPLETE}


def ordered(uuid: str, verb: str, host: str = "node1", generation: int = 2, grant: int = 1) -> Order:
    return make_order(
        uuid, host=host, generation=generation, task_id=f"t{generation}", step=verb, reporter_generation=grant
    )


def ask(agent: Agent, order: Order, verb: str, arguments: StepArguments | None = None) -> CommandReply:
    instance = make_instance(order.instance_uuid)
    request = StepRequest(order=order, verb=verb, instance=instance, arguments=arguments or StepArguments())
    return agent.commands.step(request, CONTEXT)


def do(agent: Agent, order: Order, verb: str, arguments: StepArguments | None = None) -> dict[str, str]:
    """Wait for the outcome, which must be done; its answer."""
    ask(agent, order, verb, arguments)
    agent.settle()
    result = agent.outbox.results()[-1]
    assert (result.outcome, result.message, result.step) == (OUTCOME_DONE, "", order.step)
    return result.answer


def done_on(agent: Agent, host: str) -> list[str]:
    lines, _, unreadable = parse_lines(domain_log_path(agent.directory / "hosts", host).read_bytes())
    assert not unreadable
    return [line.op for line in lines]


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


@pytest.fixture
def one(agent: Agent) -> str:
    """A server on node1."""
    uuid = fresh()
    agent.spawn(make_order(uuid))
    agent.settle()
    return uuid


def test_every_verb_is_tried_here() -> None:
    assert set(CHANGES) | MOVING == VERBS


@pytest.mark.parametrize("verb", sorted(CHANGES))
def test_a_verb_leaves_the_domain_in_its_power_state_and_the_owner_is_told_both_ways(
    agent: Agent, one: str, verb: str
) -> None:
    do(agent, ordered(one, verb), verb)
    assert agent.driver.domains("node1")[one].power_state == CHANGES[verb]
    assert agent.outbox.results()[-1].power_state == CHANGES[verb]
    assert agent.observations()[-1].power_state == CHANGES[verb]
    assert done_on(agent, "node1") == ["spawn", verb]


def test_a_verb_that_comes_again_is_answered_and_not_done_again(agent: Agent, one: str) -> None:
    order = ordered(one, VERB_PREPARE, host="node2", grant=0)
    answer = do(agent, order, VERB_PREPARE)
    reply = ask(agent, order, VERB_PREPARE)
    agent.settle()
    assert (reply.last_step, reply.last_outcome) == (VERB_PREPARE, OUTCOME_DONE)
    assert agent.outbox.results()[-1].answer == answer == {"address": "fake://node2"}
    assert done_on(agent, "node2") == [VERB_PREPARE]


def test_a_snapshot_leaves_the_domain_as_it_is_and_of_the_same_image_answers_the_same(agent: Agent, one: str) -> None:
    do(agent, ordered(one, VERB_STOP), VERB_STOP)
    image = StepArguments(image_ref=fresh())
    first = do(agent, ordered(one, VERB_SNAPSHOT, generation=3), VERB_SNAPSHOT, image)
    assert agent.driver.domains("node1")[one].power_state == POWER_SHUTDOWN
    assert (int(first[SIZE_BYTES]) >= 0, len(first[CHECKSUM])) == (True, 32)
    assert do(agent, ordered(one, VERB_SNAPSHOT, generation=4), VERB_SNAPSHOT, image) == first
    assert done_on(agent, "node1") == ["spawn", VERB_STOP, VERB_SNAPSHOT, VERB_SNAPSHOT]


def test_a_stale_generation_does_nothing(agent: Agent, one: str) -> None:
    do(agent, ordered(one, VERB_STOP, generation=3), VERB_STOP)
    with pytest.raises(CommandRefused, match="generation 3"):
        ask(agent, ordered(one, VERB_START), VERB_START)
    assert agent.driver.domains("node1")[one].power_state == POWER_SHUTDOWN


def test_an_unknown_verb_is_refused_before_it_is_recorded(agent: Agent, one: str) -> None:
    with pytest.raises(InvalidRequest, match="explode"):
        ask(agent, ordered(one, "explode"), "explode")
    assert agent.generations.find(ordered(one, "explode"))[0].value == "new"


def test_a_step_for_another_instance_than_its_order_is_refused(agent: Agent, one: str) -> None:
    request = StepRequest(order=ordered(one, VERB_STOP), verb=VERB_STOP, instance=make_instance(fresh()))
    with pytest.raises(InvalidRequest, match="instance"):
        agent.commands.step(request, CONTEXT)


def test_what_the_driver_cannot_do_fails_with_a_sentence(agent: Agent, one: str) -> None:
    agent.driver.capabilities = Capabilities("fake", frozenset({VERB_STOP}))
    ask(agent, ordered(one, VERB_PAUSE), VERB_PAUSE)
    agent.settle()
    result = agent.outbox.results()[-1]
    assert (result.outcome, result.message) == (OUTCOME_FAILED, "the fake driver of host node1 cannot pause")


def test_a_verb_on_a_domain_that_is_not_here_fails_and_says_so(agent: Agent) -> None:
    ask(agent, ordered(fresh(), VERB_STOP), VERB_STOP)
    agent.settle()
    assert agent.outcomes() == [OUTCOME_FAILED]
    assert "found none" in agent.outbox.results()[-1].message


def test_a_verb_cut_short_by_the_agents_death_waits_for_its_command_and_is_done_once_more(
    agent: Agent, one: str
) -> None:
    order = ordered(one, VERB_STOP)
    ask(agent, order, VERB_STOP)  # recorded; the worker has not run yet when the process dies
    again = agent.killed()
    assert [result.step for result in again.outbox.results()] == ["spawn"]
    assert again.driver.domains("node1")[one].power_state == POWER_RUNNING
    do(again, order, VERB_STOP)
    assert again.driver.domains("node1")[one].power_state == POWER_SHUTDOWN


def test_what_was_done_under_a_former_owner_is_told_to_the_next_one_and_not_done_again(agent: Agent, one: str) -> None:
    do(agent, ordered(one, VERB_REBOOT), VERB_REBOOT)
    taken_over = make_order(one, generation=3, task_id="t2", step=VERB_REBOOT, reporter_generation=0)
    agent.adopt(taken_over)
    do(agent, taken_over, VERB_REBOOT)
    assert agent.outbox.results()[-1].generation == 3
    assert done_on(agent, "node1") == ["spawn", VERB_REBOOT]


def test_an_answer_outlives_the_agent(agent: Agent, one: str) -> None:
    order = ordered(one, VERB_PREPARE, host="node2", grant=0)
    do(agent, order, VERB_PREPARE)
    again = agent.killed()
    ask(again, order, VERB_PREPARE)
    assert again.outbox.results()[-1].answer == {"address": "fake://node2"}


def test_a_cold_move_leaves_the_stopped_domain_at_the_source_and_the_reports_to_the_destination(
    agent: Agent, one: str
) -> None:
    peer = do(agent, ordered(one, VERB_PREPARE, host="node2", grant=0), VERB_PREPARE)
    do(agent, ordered(one, VERB_SEND, grant=0), VERB_SEND, StepArguments(peer_host="node2", peer=peer))
    assert agent.driver.domains("node2") == {}
    do(agent, ordered(one, VERB_ACTIVATE, host="node2", generation=3, grant=2), VERB_ACTIVATE)
    assert agent.driver.domains("node1")[one].power_state == POWER_SHUTDOWN
    assert agent.driver.domains("node2")[one].power_state == POWER_RUNNING
    seen = agent.observations()[-1]
    assert (seen.host, seen.generation, seen.power_state) == ("node2", 2, POWER_RUNNING)


def test_a_move_of_a_stopped_server_ends_stopped(agent: Agent, one: str) -> None:
    do(agent, ordered(one, VERB_PREPARE, host="node2", grant=0), VERB_PREPARE)
    order = ordered(one, VERB_ACTIVATE, host="node2", generation=3, grant=2)
    do(agent, order, VERB_ACTIVATE, StepArguments(power=POWER_SHUTDOWN))
    assert agent.driver.domains("node2")[one].power_state == POWER_SHUTDOWN


def test_a_live_move_hands_the_domain_over_and_done_again_changes_nothing(agent: Agent, one: str) -> None:
    peer = do(agent, ordered(one, VERB_PREPARE, host="node2", grant=0), VERB_PREPARE)
    arguments = StepArguments(peer_host="node2", peer=peer)
    do(agent, ordered(one, VERB_MIGRATE, grant=0), VERB_MIGRATE, arguments)
    assert agent.driver.domains("node1") == {}
    assert agent.driver.domains("node2")[one].power_state == POWER_RUNNING
    do(agent, ordered(one, VERB_MIGRATE, generation=3, grant=0), VERB_MIGRATE, arguments)
    assert done_on(agent, "node2") == [VERB_PREPARE, "arrive"]


def test_a_live_move_to_nowhere_fails_and_the_domain_stays(agent: Agent, one: str) -> None:
    ask(agent, ordered(one, VERB_MIGRATE), VERB_MIGRATE, StepArguments(peer={"address": "fake://../x"}))
    agent.settle()
    assert agent.outbox.results()[-1].outcome == OUTCOME_FAILED
    assert agent.driver.domains("node1")[one].power_state == POWER_RUNNING


def test_a_live_move_is_aborted_beside_its_own_work_and_the_domain_stays(agent: Agent, one: str) -> None:
    peer = do(agent, ordered(one, VERB_PREPARE, host="node2", grant=0), VERB_PREPARE)
    agent.driver._step_s = 0.5
    early = ordered(one, VERB_ABORT, grant=0)
    ask(agent, early, VERB_ABORT)  # nothing is under way yet
    gevent.sleep(0)
    ask(agent, ordered(one, VERB_MIGRATE, grant=0), VERB_MIGRATE, StepArguments(peer_host="node2", peer=peer))
    gevent.sleep(0.01)
    ask(agent, early, VERB_ABORT)
    agent.settle()
    outcomes = {result.step: (result.outcome, result.message) for result in agent.outbox.results()}
    assert outcomes[VERB_MIGRATE] == (OUTCOME_FAILED, f"the live migration of {one} was aborted")
    assert agent.driver.domains("node1")[one].power_state == POWER_RUNNING
    assert agent.driver.domains("node2") == {}


def test_one_more_reported_instance_than_allowed_is_refused_and_an_own_one_is_not(tmp_path: Path) -> None:
    agent, one = Agent(tmp_path, observations_max=1), fresh()
    agent.spawn(make_order(one))
    agent.settle()
    do(agent, ordered(one, VERB_STOP), VERB_STOP)
    other = fresh()
    with pytest.raises(Busy):
        ask(agent, ordered(other, VERB_ACTIVATE), VERB_ACTIVATE)
