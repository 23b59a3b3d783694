"""What a drain does next, by rows alone."""

from typing import Any

import msgspec
import pytest

from tests.unit.conductor.ledger_world import TINY
from tests.unit.conductor.ledger_world import instance as made
from zcompute.cli.draining import ATTEMPTS_MAX, COLD, EVACUATION, LIVE, Ask, Draining, Leave, Wait, next_step
from zcompute.objects.instance import Instance, Move


def row(uuid: str = "u1", **fields: Any) -> Instance:
    values = {"host": "h1", "vm_state": "active", "task_state": None, "decided": 7}
    return made(uuid, **{**values, **fields})


def moved(operation_id: str = "drain-migrate-3", **fields: Any) -> Instance:
    move = Move(
        kind="migrate", former_host="h1", former_claim="t/0", former_flavor=TINY, former_vm_state="active", since_us=1,
        operation_id=operation_id,
    )  # fmt: skip
    return row(**{"host": "h2", "vm_state": "resized", "move": move, **fields})


@pytest.mark.parametrize(
    ("instance", "way", "action"),
    [
        (row(), COLD, "migrate"),
        (row(vm_state="stopped"), COLD, "migrate"),
        (row(), LIVE, "live_migrate"),
        (row(vm_state="stopped"), LIVE, "migrate"),
        (row(vm_state="error"), EVACUATION, "evacuate"),
        *((row(vm_state="shelved"), way, "shelve_offload") for way in (COLD, LIVE, EVACUATION)),
        (moved(), COLD, "confirm_resize"),
        (moved(host="h1"), COLD, "confirm_resize"),  # a drain of another host has brought it here
    ],
)
def test_what_is_asked_for_is_named_by_the_row(instance: Instance, way: str, action: str) -> None:
    step = next_step(instance, "h1", way)
    assert isinstance(step, Ask)
    assert (step.action, step.operation_id) == (action, f"drain-{action}-7")
    assert step.arguments.block == (action == "live_migrate")


@pytest.mark.parametrize(
    ("instance", "why"),
    [
        (row(vm_state="paused"), "vm_state paused"),
        (row(vm_state="error"), "vm_state error"),
        (row(vm_state="soft-delete"), "vm_state soft-delete"),
        (moved("op-of-a-user"), "confirmed or reverted"),
        (moved(vm_state="error"), "confirmed or reverted"),
    ],
)
def test_what_cannot_be_moved_is_left_with_the_reason(instance: Instance, why: str) -> None:
    step = next_step(instance, "h1", COLD)
    assert isinstance(step, Leave)
    assert why in step.reason


def test_what_is_elsewhere_or_gone_is_nothing_to_do_and_what_has_a_task_is_waited_for() -> None:
    assert next_step(row(host="h2"), "h1", COLD) is None
    assert next_step(row(vm_state="deleted"), "h1", COLD) is None
    assert next_step(row(host=None), "h1", COLD) is None
    assert next_step(row(task_id="t", task_state=None), "h1", COLD) == Wait()
    assert next_step(moved(task_state="resize_confirming"), "h1", COLD) == Wait()


def test_so_many_are_under_way_at_once_and_a_confirmation_takes_no_place_of_another() -> None:
    draining = Draining("h1", COLD, 3)
    rows = [row(f"u{number}", created_at_us=number) for number in range(5)]
    look = draining.look([*reversed(rows), row("busy", task_id="t"), msgspec.structs.replace(moved(), uuid="m")])
    assert [(instance.uuid, ask.action) for instance, ask in look.asks] == [("m", "confirm_resize"), ("u0", "migrate")]
    assert (look.under_way, look.on_host, look.over) == (1, 7, False)


def test_a_server_that_comes_back_to_where_it_was_is_tried_so_often_and_left() -> None:
    draining = Draining("h1", COLD, 4)
    for attempt in range(ATTEMPTS_MAX):
        look = draining.look([row(decided=attempt)])
        assert len(look.asks) == 1
        assert len(draining.look([row(decided=attempt)]).asks) == 1, "an answer was lost: the same is asked for again"
    look = draining.look([row(decided=ATTEMPTS_MAX)])
    assert (look.asks, list(look.left), look.over) == ([], ["u1"], True)


def test_a_server_whose_cell_says_no_is_left_with_its_words_unless_its_row_changes() -> None:
    draining = Draining("h1", COLD, 4)
    for decided in range(2):
        ((instance, step),) = draining.look([row(decided=decided)]).asks
        draining.refused(instance, step, "locked by another")
        assert draining.look([row(decided=decided)]).left == {"u1": "locked by another"}
    assert draining.look([row(decided=2)]).asks


def test_a_host_without_servers_is_drained() -> None:
    look = Draining("h1", COLD, 4).look([row(host="h2")])
    assert (look.on_host, look.over) == (0, True)
