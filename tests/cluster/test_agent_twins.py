"""Two agents of one host: the later wins, the earlier ends with an alarm and an exit code. Real processes."""

import pytest

from tests.cluster.agent_cell import HOSTS, WAIT_S, Cell, call, eventually, spawn_request
from tests.orders import fresh, make_order
from zcompute.cli.exits import HOSTS_TAKEN
from zcompute.objects.methods import SPAWN


@pytest.mark.parametrize("key", ["agent", "other"])
def test_the_earlier_of_two_agents_ends_and_the_two_do_not_take_turns(cell: Cell, key: str) -> None:
    """A cloned image (the same key and service id), or a second key for the same hosts."""
    conductor = cell.conductors[0]
    earlier = cell.start_agent()
    conductor.ready()
    later = cell.start_agent(state="clone", key=key)
    assert earlier.wait(WAIT_S) == HOSTS_TAKEN
    text = cell.log_text()
    assert "ALARM another agent has taken the host" in text
    assert "another agent has taken every host of this one" in text

    eventually("the later is attached", lambda: _newest_attached(cell))
    eventually(
        "it knows what was granted",
        lambda: "no longer in doubt path=" + str(cell.directory / "clone") in cell.log_text(),
    )
    epochs = dict(conductor.epochs)
    one = fresh()
    call(conductor.link(), SPAWN, spawn_request(make_order(one)))
    eventually("the later obeys and reports", lambda: conductor.observations(one))
    assert conductor.epochs == epochs, "nobody has begun anew since"
    assert {got.epochs["node1"] for got in conductor.got} == {epochs["node1"]}
    assert later.poll() is None


def _newest_attached(cell: Cell) -> bool:
    conductor = cell.conductors[0]
    try:
        link = conductor.link()
    except LookupError:
        return False
    return all(conductor.attached[link][host] == conductor.epochs[host] for host in HOSTS)
