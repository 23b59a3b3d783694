"""The order of the hand-off: turns, shares, back-off, generations. No I/O, time passed in."""

from msgspec.structs import replace

from tests.unit.conductor.root.fakes import TINY, UUIDS
from zcompute.conductor.root.handoff_queue import HandOffQueue
from zcompute.conductor.root.settings import HandOffLimits
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.instance import ServerSpec
from zcompute.objects.partition import partition_of


def request(number=0, cell="c1", generation=1, project_id="p1"):
    return BuildRequest(
        uuid=UUIDS[number],
        project_id=project_id,
        user_id="u",
        name="n",
        flavor=TINY,
        spec=ServerSpec(),
        operation_id="op",
        cell=cell,
        generation=generation,
    )


def queue(**limits):
    return HandOffQueue(HandOffLimits(**limits))


def take_all(items, now=0.0):
    taken = []
    while (item := items.take(now)) is not None:
        taken.append(item)
    return taken


def test_cells_take_turns():
    items = queue()
    for number, cell in enumerate(["c1", "c1", "c1", "c2"]):
        items.put(request(number, cell), decided_here=True)
    assert [item.cell for item in take_all(items)] == ["c1", "c2", "c1", "c1"]


def test_one_cell_never_holds_more_than_its_share_of_the_workers():
    items = queue(workers_max=3, per_cell_max=2)
    for number in range(4):
        items.put(request(number), decided_here=True)
    items.put(request(5, "c2"), decided_here=True)
    assert sorted(item.cell for item in take_all(items)) == ["c1", "c1", "c2"]


def test_all_cells_together_never_hold_more_than_all_workers():
    items = queue(workers_max=2, per_cell_max=2)
    for number in range(4):
        items.put(request(number, f"c{number}"), decided_here=True)
    first = take_all(items)
    assert len(first) == 2
    items.finish(first[0])
    assert len(take_all(items)) == 1


def test_a_failed_attempt_is_due_again_after_its_pause():
    items = queue()
    items.put(request(), decided_here=True)
    item = items.take(0.0)
    items.again(item, 5.0)
    assert items.next_due() == 5.0
    assert items.take(4.9) is None
    assert items.take(5.0) is item
    assert items.take(5.0) is None


def test_a_link_that_comes_up_makes_its_cell_due_at_once_and_only_once():
    items = queue()
    for number, cell in enumerate(["c1", "c2", None]):
        items.put(request(number, cell), decided_here=True)
    for item in take_all(items):
        items.again(item, 5.0)
    items.hurry("c1")
    items.hurry("c1")
    assert sorted(item.cell for item in take_all(items, 1.0)) == ["", "c1"]
    assert [item.cell for item in take_all(items, 5.0)] == ["c2"]


def test_the_same_or_an_older_generation_is_not_taken_up_twice():
    items = queue()
    items.put(request(generation=2), decided_here=True)
    items.put(request(generation=2), decided_here=False)
    items.put(request(generation=1, cell="c9"), decided_here=False)
    assert [item.cell for item in take_all(items)] == ["c1"]


def test_a_newer_generation_replaces_one_that_waits():
    items = queue()
    items.put(request(), decided_here=True)
    items.again(items.take(0.0), 5.0)
    items.put(request(cell="c2", generation=2), decided_here=True)
    assert [item.cell for item in take_all(items, 9.0)] == ["c2"]
    assert len(items) == 1


def test_a_newer_generation_follows_one_that_is_being_worked_on():
    for end in ("finish", "again"):
        items = queue()
        items.put(request(), decided_here=True)
        item = items.take(0.0)
        items.put(request(cell="c2", generation=2), decided_here=True)
        assert items.take(0.0) is None
        if end == "finish":
            items.finish(item)
        else:
            items.again(item, 5.0)
        assert [following.cell for following in take_all(items)] == ["c2"]


def test_lost_partitions_are_forgotten_and_their_running_items_named():
    items = queue()
    items.put(request(0, project_id="p1"), decided_here=True)
    items.put(request(1, project_id="p1"), decided_here=True)
    items.put(request(2, project_id="p2"), decided_here=True)
    running = items.take(0.0)
    assert items.drop({partition_of("p1")}) == [running]
    items.finish(running)
    items.again(running, 1.0)
    assert len(items) == 1
    assert [item.build_request.project_id for item in take_all(items, 9.0)] == ["p2"]


def test_a_share_is_given_back_under_the_cell_it_was_taken_for():
    items = queue(workers_max=1, per_cell_max=1)
    items.put(request(0, cell=None), decided_here=True)
    item = items.take(0.0)
    item.build_request = replace(item.build_request, cell="c1")
    items.finish(item)
    items.put(request(1, cell=None), decided_here=True)
    assert items.take(0.0) is not None
