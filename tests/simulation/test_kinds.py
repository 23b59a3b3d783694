"""Every action and every move of the tables is simulated, or excused with the reason: a new one is asked for here."""

from tests.simulation.cell.hypervisor import SimDriver
from tests.simulation.cell.kinds import ABORT, ACTS, DELETE, EXCUSED, KINDS_EXCUSED, LOST_HOST, SIMULATED, WALKS
from zcompute.compute.verbs import VERBS
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.objects.actions import ACTIONS

VERBS_EXCUSED = {
    "resize": "on the same host: no plan asks for it",
    "complete": "beside a migration that copies for long, which these do not: tests/unit/compute/test_verbs.py",
}


def test_every_action_is_simulated_or_excused_and_none_is_both() -> None:
    assert SIMULATED | set(EXCUSED) == set(ACTIONS), "name it in tests/simulation/cell/kinds.py"
    assert SIMULATED.isdisjoint(EXCUSED)
    assert all(EXCUSED.values())


def test_every_kind_of_move_is_begun_by_an_action_that_is_simulated() -> None:
    begun = {kind for key in SIMULATED for kind in (ACTIONS[key].kind, ACTIONS[key].kind_here) if kind}
    assert begun | set(KINDS_EXCUSED) == set(PLANS), "name the action that begins it in tests/simulation/cell/kinds.py"


def test_what_clients_ask_for_is_in_the_tables() -> None:
    asked = {*ACTS, *LOST_HOST, *(action for walk in WALKS for action in walk)}
    assert asked - {DELETE, ABORT} <= set(ACTIONS)


def test_every_verb_is_one_of_the_simulated_hypervisors() -> None:
    assert set(VERBS) == SimDriver.capabilities.verbs | set(VERBS_EXCUSED), "add it to SimDriver, or excuse it"
