from dataclasses import replace
from types import SimpleNamespace

import gevent
import msgspec
import pytest

from tests.unit.conductor.ledger_world import World, wait_for
from tests.unit.conductor.tasks.samples import NOW_US, UUID, new_build
from zcompute.bus.errors import Busy, DeadlineExceeded
from zcompute.conductor.cell.root_outbox import RootOutbox, handed_back
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.tasks.build_walk import refuse_build
from zcompute.db.tables import INSTANCES, ROOT_OUTBOX
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.instance import VM_DELETED
from zcompute.objects.partition import partition_of


class Root:
    def __init__(self, failures=0):
        self.failures = failures
        self.calls = []

    def call(self, key, method, request, *, timeout_ms):
        if self.failures:
            self.failures -= 1
            raise DeadlineExceeded("the root is away")
        self.calls.append((key, method.name, request))


@pytest.fixture
def world():
    made = World()
    made.root = Root()
    env = SimpleNamespace(ledger=made.ledger, store=made.store, cell="c1")
    made.outbox = RootOutbox(env, made.root, CellSettings(outbox_retry_ms_min=1, outbox_retry_ms_max=5))
    yield made
    made.outbox.stop()
    made.close()


def deleted_entry():
    return OutboxEntry(instance_uuid=UUID, project_id="demo", kind="deleted", generation=2)


def test_a_row_is_sent_until_acknowledged_then_deleted(world):
    world.root.failures = 3
    entry = deleted_entry()
    world.database.seed(ROOT_OUTBOX, entry)
    world.outbox.owed(entry)
    world.outbox.owed(entry)
    wait_for(lambda: not world.database.tables["root_outbox"])
    ((key, name, request),) = world.root.calls
    assert (key, name) == ("demo", "deleted")
    assert (request.uuid, request.cell, request.generation) == (UUID, "c1", 2)
    wait_for(lambda: len(world.outbox) == 0)


def test_a_word_of_a_kind_that_is_not_known_is_kept_and_never_told_as_another(world):
    entry = OutboxEntry(instance_uuid=UUID, project_id="demo", kind="of a later release", generation=2)
    world.database.seed(ROOT_OUTBOX, entry)
    world.outbox.owed(entry)
    gevent.sleep(0.02)
    assert (world.root.calls, len(world.outbox)) == ([], 0)
    assert world.database.tables["root_outbox"]


def test_an_acknowledged_refusal_ends_the_instance_in_the_same_commit(world):
    instance, task = new_build()
    decision = refuse_build(instance, task, "c1", "no room", NOW_US)
    world.database.seed(INSTANCES, decision.instance)
    world.database.seed(ROOT_OUTBOX, decision.outbox)
    before = len(world.database.commits)
    world.outbox.owed(decision.outbox)
    wait_for(lambda: not world.database.tables["root_outbox"])
    row = world.database.row(INSTANCES, (UUID,))
    assert (row.vm_state, row.task_state) == (VM_DELETED, None)
    assert len([batch for batch in world.database.commits[before:] if batch.changes]) == 1
    ((_, name, request),) = world.root.calls
    assert (name, request.reason, request.build_request.uuid) == ("refused", "no room", UUID)


def test_only_the_refused_generation_is_handed_back():
    instance, task = new_build()
    assert handed_back(instance, 1, NOW_US) is None  # its build is under way
    refused = refuse_build(instance, task, "c1", "no room", NOW_US).instance
    assert handed_back(refused, 2, NOW_US) is None
    assert handed_back(None, 1, NOW_US) is None
    assert handed_back(refused, 1, NOW_US).vm_state == VM_DELETED


def test_rows_of_lost_partitions_are_the_new_owners(world):
    world.root.failures = 1_000_000
    world.outbox.owed(deleted_entry())
    world.outbox.lost([partition_of(UUID)])
    assert len(world.outbox) == 0
    world.root.failures = 0
    assert world.root.calls == []


def test_a_row_whose_partition_is_lost_while_it_is_sent_is_let_go(world):
    world.root.call = lambda *_, **__: world.ledger.leave([partition_of(UUID)])
    world.outbox.owed(deleted_entry())
    wait_for(lambda: len(world.outbox) == 0)
    wait_for(lambda: not world.outbox._senders)


def test_a_row_owed_just_as_all_senders_end_is_sent(world):
    """The last sender's end and the next push fall into one turn of the hub."""
    entries = [deleted_entry(), msgspec.structs.replace(deleted_entry(), generation=3)]
    for entry in entries:
        world.database.seed(ROOT_OUTBOX, entry)
    world.outbox._settings = replace(world.outbox._settings, outbox_senders_max=1)
    delete = world.outbox._delete

    def delete_then_owe(entry):
        delete(entry)
        if entry is entries[0]:
            sender = gevent.getcurrent()
            gevent.spawn(lambda: sender.dead and world.outbox.owed(entries[1]))

    world.outbox._delete = delete_then_owe
    world.outbox.owed(entries[0])
    wait_for(lambda: not world.database.tables["root_outbox"])


def test_rows_beyond_the_limit_are_taken_up_when_there_is_room(world):
    entries = [msgspec.structs.replace(deleted_entry(), generation=number) for number in range(5)]
    world.outbox._settings = replace(world.outbox._settings, outbox_rows_max=1)
    for entry in entries:
        world.database.seed(ROOT_OUTBOX, entry)
        world.outbox.owed(entry)
    assert len(world.outbox) == 1
    wait_for(lambda: not world.database.tables["root_outbox"])


def test_at_the_limit_new_work_is_refused_before_any_effect_and_taken_again_when_the_root_is_back(world):
    world.root.failures = 10_000
    world.outbox._settings = replace(world.outbox._settings, outbox_rows_max=3)
    world.outbox.check_room(2)
    entry = deleted_entry()
    world.database.seed(ROOT_OUTBOX, entry)
    world.outbox.owed(entry)
    world.outbox.check_room(1)
    with pytest.raises(Busy) as busy:
        world.outbox.check_room(2)  # one row waits, two works under way may owe theirs
    assert busy.value.retry_after_ms
    measured = {measure.name: measure.value for measure in world.outbox.measures(5_000_000)}
    assert measured["root_outbox_rows"] == 1
    assert (measured["root_outbox_rows_max"], measured["root_outbox_refused"]) == (3, 1)
    assert measured["root_outbox_oldest_seconds"] == 5.0
    world.root.failures = 0
    wait_for(lambda: len(world.outbox) == 0)
    world.outbox.check_room(2)
