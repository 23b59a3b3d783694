"""The history's retention: an ended action goes with its events, one under way with none, whatever its age."""

from collections.abc import Iterator

import pytest

from tests.unit.conductor.ledger_world import World
from zcompute.conductor.cell import history_purge
from zcompute.conductor.cell.history_purge import HistoryPurge
from zcompute.conductor.purge import PurgeSettings
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS
from zcompute.objects.history import InstanceAction, InstanceActionEvent

HOUR_S = 3600
HOUR_US = HOUR_S * 1_000_000
SETTINGS = PurgeSettings(page_rows=3, page_pause_ms=0)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def add(world: World, uuid: str, operation: str, age_h: float | None, events: int = 2) -> None:
    """An action that ended so long ago, None: it is under way; its events are older than everything."""
    ended = None if age_h is None else world.ledger.now_us() - int(age_h * HOUR_US)
    action = InstanceAction(instance_uuid=uuid, operation_id=operation, action="create", finished_at_us=ended)
    made = [
        InstanceActionEvent(instance_uuid=uuid, operation_id=operation, task_id="t", event=f"e{n}", finished_at_us=1)
        for n in range(events)
    ]
    world.database.seed(INSTANCE_ACTIONS, action)
    world.database.seed(INSTANCE_ACTION_EVENTS, *made)


def purge(world: World) -> HistoryPurge:
    return HistoryPurge(world.ledger, world.store, HOUR_S, SETTINGS)  # type: ignore[arg-type]


def left(world: World) -> set[tuple[str, int]]:
    """Each operation that is left, with the number of its events."""
    events = [key[1] for key in world.database.tables["instance_action_events"]]
    actions = [key[1] for key in world.database.tables["instance_actions"]]
    return {(operation, events.count(operation)) for operation in {*events, *actions}}


def test_what_ended_long_ago_goes_with_its_events_and_what_is_under_way_never(world: World) -> None:
    add(world, "u1", "old", 2)
    add(world, "u1", "fresh", 0.5)
    add(world, "u1", "endless", None)
    for number in range(5):
        add(world, f"v{number}", f"old-{number}", 3, events=number)
    assert purge(world).round() == 6
    assert left(world) == {("fresh", 2), ("endless", 2)}
    assert purge(world).round() == 0


def test_an_operation_that_came_back_since_it_was_read_stays(world: World) -> None:
    add(world, "u1", "op", 2)
    purging = purge(world)
    (action,) = world.store.scan(INSTANCE_ACTIONS)
    add(world, "u1", "op", None)  # the same row, under way again
    assert (
        purging._delete(INSTANCE_ACTIONS.home_of(action), [INSTANCE_ACTIONS.key_of(action)], world.ledger.now_us()) == 0
    )
    assert left(world) == {("op", 2)}


def test_too_many_events_go_in_several_steps_and_their_action_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_purge, "EVENTS_MAX", 4)
    add(world, "u1", "op", 2, events=10)
    purging = HistoryPurge(world.ledger, world.store, HOUR_S, PurgeSettings(page_rows=3, pages_max=1))  # type: ignore[arg-type]
    steps = []
    while purging.round():
        steps.append(left(world))
    assert steps == [{("op", 6)}, {("op", 2)}, set()]
