"""/servers/ID/migrations: what administrators see of a live migration, and what they may say of it."""

import uuid

import pytest

from tests.api.test_actions import server_in
from tests.api.test_servers import NOWHERE
from zcompute.api.migrations import number_of
from zcompute.objects.errors import TaskNotFound, TaskRefused
from zcompute.objects.task import TASK_LIVE_MIGRATE, TASK_MIGRATE, Task, TaskBody


@pytest.fixture
def moving(admin, region):
    """A server whose live migration is under way, and its task."""

    def make(step="migrate", kind=TASK_LIVE_MIGRATE):
        task_id = str(uuid.uuid4())
        server = server_in(admin, region, task_state="migrating", task_id=task_id)
        body = TaskBody(source="h1", host="h2")
        task = Task(id=task_id, instance_uuid=server, kind=kind, step=step, body=body, created_at_us=1, updated_at_us=2)
        region.c2.tasks.append(task)
        return server, task

    yield make
    region.c2.tasks.clear()
    region.c2.words.clear()


def path(server, task=None, action=False):
    which = "" if task is None else f"/{number_of(task.id)}"
    return f"/v2.1/servers/{server}/migrations{which}{'/action' if action else ''}"


def test_a_live_migration_is_listed_and_shown_by_number_and_by_id(admin, moving):
    server, task = moving()
    (found,) = admin.get(path(server)).body["migrations"]
    assert (found["id"], found["uuid"], found["server_uuid"]) == (number_of(task.id), task.id, server)
    assert (found["status"], found["source_compute"], found["dest_compute"]) == ("running", "h1", "h2")
    assert (found["memory_total_bytes"], found["disk_remaining_bytes"]) == (None, None)
    assert admin.get(path(server, task)).body["migration"] == found
    assert admin.get(f"{path(server)}/{task.id}").body["migration"] == found


@pytest.mark.parametrize(
    ("step", "status"), [("schedule", "queued"), ("prepare", "preparing"), ("grant", "post-migrating")]
)
def test_its_status_follows_its_step(admin, moving, step, status):
    server, task = moving(step)
    assert admin.get(path(server, task)).body["migration"]["status"] == status


def test_a_server_without_one_has_none(admin, region, moving):
    idle = server_in(admin, region)
    assert admin.get(path(idle)).body == {"migrations": []}
    cold, task = moving(kind=TASK_MIGRATE)
    assert admin.get(path(cold)).body == {"migrations": []}
    expected = f"Migration {number_of(task.id)} not found for instance {cold}"
    assert admin.get(path(cold, task)).fault == ("itemNotFound", 404, expected)
    for name in (NOWHERE, "no-uuid"):
        assert admin.get(path(name)).fault[:2] == ("itemNotFound", 404)


def test_it_is_aborted_and_completed_each_once(admin, region, moving):
    server, task = moving()
    for _ in range(2):
        assert admin.ask("DELETE", path(server, task)).status == 202
        assert admin.ask("POST", path(server, task, action=True), {"force_complete": None}).status == 202
    assert [(word, order.task_id) for word, order in region.c2.words] == [("abort", task.id), ("complete", task.id)] * 2
    assert len({order.operation_id for _, order in region.c2.words}) == 2


@pytest.mark.parametrize(
    ("step", "verb", "word"),
    [
        ("prepare", "POST", "force_complete"),
        ("grant", "POST", "force_complete"),
        ("grant", "DELETE", "abort live migration"),
    ],
)
def test_what_its_state_forbids_is_refused_in_novas_words(admin, region, moving, step, verb, word):
    server, task = moving(step)
    body = {"force_complete": None} if verb == "POST" else None
    fault = admin.ask(verb, path(server, task, action=verb == "POST"), body).fault
    assert fault[:2] == ("badRequest", 400)
    assert f"Cannot {word} while the migration is in this state." in fault[2]
    assert not region.c2.words


@pytest.mark.parametrize("error", [TaskNotFound("gone", task_id="t"), TaskRefused("it has gone on", task_id="t")])
def test_one_that_has_gone_on_meanwhile_is_not_found_or_a_conflict(admin, region, moving, error, monkeypatch):
    server, task = moving()

    def gone(order):
        raise error

    monkeypatch.setattr(region.c2, "word", lambda word, order: gone(order))
    status = 404 if isinstance(error, TaskNotFound) else 409
    assert admin.ask("DELETE", path(server, task)).status == status


def test_nobody_but_administrators_sees_or_says_anything(client, region, moving):
    server, task = moving()
    for verb, action in (("GET", False), ("DELETE", False), ("POST", True)):
        assert client.ask(verb, path(server, task, action), {"force_complete": None}).fault[:2] == ("forbidden", 403)
    assert not region.c2.words


@pytest.mark.parametrize("body", ["", "{}", {"force_complete": 1}, {"force_complete": None, "x": 1}, {"abort": None}])
def test_a_wrong_body_is_refused(admin, region, moving, body):
    server, task = moving()
    assert admin.ask("POST", path(server, task, action=True), body).fault[:2] == ("badRequest", 400)
    assert not region.c2.words
