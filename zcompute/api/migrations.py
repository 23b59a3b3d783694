"""/servers/ID/migrations: the live migration of a server that is under way, its abort, and its completion by force.

As Nova's from 2.22 to 2.24 (nova/api/openstack/compute/server_migrations.py), for administrators. A migration is the
server's task: its ``uuid`` is the task's id, its ``id`` a number made of that.
"""

import logging
import uuid as uuids
from typing import Any, cast

import msgspec

from zcompute.api import context
from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest, ConflictingRequest, Forbidden, ItemNotFound
from zcompute.api.locate import Servers
from zcompute.api.region import Region
from zcompute.api.schemas import decode
from zcompute.api.settings import LIMITS
from zcompute.api.uuids import canonical_uuid
from zcompute.api.views import usage_time
from zcompute.config import ApiConfig
from zcompute.objects.errors import InstanceNotFound, TaskNotFound, TaskRefused
from zcompute.objects.instance import Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.tasks import TaskListReply, TaskListRequest, TaskOrder
from zcompute.objects.methods import TASK_ABORT, TASK_COMPLETE, TASK_LIST
from zcompute.objects.task import TASK_LIVE_MIGRATE, Task

log = logging.getLogger(__name__)

ID_CHARS_MAX = 80
RUNNING = "running"
STATUS = {"schedule": "queued", "claim": "preparing", "prepare": "preparing", "migrate": RUNNING}
"""By the task's step, as Nova names it; any other step is behind the switch, or on the way back."""


class ForceComplete(msgspec.Struct, forbid_unknown_fields=True):
    """The only action of a migration."""

    force_complete: None


_ACTION = msgspec.json.Decoder(ForceComplete)


def number_of(task_id: str) -> int:
    """A task's id as a number of 31 bits: a server has one migration under way at most."""
    return int(task_id.replace("-", "")[:8], 16) & 0x7FFF_FFFF


def is_named(task: Task, name: str) -> bool:
    """By number or id."""
    return name in (str(number_of(task.id)), task.id)


def migration_view(task: Task, instance: Instance) -> dict[str, Any]:
    """As Nova 2.59 shows it. What a hypervisor does not tell of its progress is null."""
    progress = dict.fromkeys(
        f"{what}_{which}_bytes" for what in ("memory", "disk") for which in ("total", "processed", "remaining")
    )
    return {
        "id": number_of(task.id),
        "uuid": task.id,
        "server_uuid": instance.uuid,
        "status": STATUS.get(task.step, "post-migrating"),
        "source_compute": task.body.source,
        "source_node": task.body.source,
        "dest_compute": task.body.host,
        "dest_node": task.body.host,
        "dest_host": None,
        "created_at": usage_time(task.created_at_us),
        "updated_at": usage_time(task.updated_at_us),
        **progress,
    }


class Migrations:
    """What the three resources share: who may, and which task it is."""

    def __init__(self, servers: Servers, region: Region) -> None:
        self._servers = servers
        self._region = region

    def of(self, req: Any, server_id: str, name: str) -> tuple[Instance, list[Task]]:
        """The server, and its live migration if one is under way. Raises Forbidden, ItemNotFound."""
        caller: Caller = context.caller_of(req)
        if not caller.is_admin:
            raise Forbidden(f"Policy doesn't allow os_compute_api:servers:migrations:{name} to be performed.")
        uuid = canonical_uuid(server_id)
        not_found = ItemNotFound(f"Instance {server_id[:ID_CHARS_MAX]} could not be found.")
        if uuid is None:
            raise not_found
        deadline = context.deadline_of(req)
        try:
            instance = self._servers.show(uuid, None, deadline)
        except InstanceNotFound:
            raise not_found from None
        place = self._servers.places.get(uuid)
        if place is None or instance.task_id is None:
            return instance, []
        request = TaskListRequest(limit=1, instance_uuid=uuid, kind=TASK_LIVE_MIGRATE)
        timeout_ms = deadline.left_at_most(LIMITS.read_ms_max)
        reply = cast(TaskListReply, self._region.ask(place.cell, TASK_LIST, request, timeout_ms))
        return instance, reply.tasks

    def one(self, req: Any, server_id: str, migration_id: str, name: str) -> tuple[Instance, Task]:
        """That very one. Raises Forbidden, ItemNotFound."""
        instance, tasks = self.of(req, server_id, name)
        found = [task for task in tasks if is_named(task, migration_id)]
        if not found:
            raise migration_not_found(migration_id, instance.uuid)
        return instance, found[0]

    def order(self, task: Task, method: Method, deadline: Deadline) -> None:
        """A word on it. Raises ItemNotFound, ConflictingRequest for a task that has gone on meanwhile."""
        place = self._servers.places.get(task.instance_uuid)
        if place is None:
            raise migration_not_found(str(number_of(task.id)), task.instance_uuid)
        order = TaskOrder(
            instance_uuid=task.instance_uuid,
            task_id=task.id,
            operation_id=str(uuids.uuid5(uuids.UUID(task.id), method.name)),
        )
        try:
            self._region.ask(place.cell, method, order, deadline.left_at_most(LIMITS.read_ms_max))
        except TaskNotFound:
            raise migration_not_found(str(number_of(task.id)), task.instance_uuid) from None
        except TaskRefused as error:
            raise ConflictingRequest(error.message) from None


def migration_not_found(migration_id: str, uuid: str) -> ItemNotFound:
    """In Nova's words."""
    return ItemNotFound(f"Migration {migration_id[:ID_CHARS_MAX]} not found for instance {uuid}")


def require_running(task: Task, method: str) -> None:
    """In Nova's words. Raises BadRequest."""
    status = STATUS.get(task.step, "post-migrating")
    if status != RUNNING:
        raise BadRequest(
            f"Migration {number_of(task.id)} state of instance {task.instance_uuid} is {status}. Cannot {method} while "
            "the migration is in this state."
        )


class ServerMigrations:
    """GET /servers/ID/migrations."""

    def __init__(self, migrations: Migrations) -> None:
        self._migrations = migrations

    def on_get(self, req: Any, resp: Any, server_id: str) -> None:
        """Those under way: one, or none."""
        instance, tasks = self._migrations.of(req, server_id, "index")
        context.answer(resp, {"migrations": [migration_view(task, instance) for task in tasks]})


class ServerMigration:
    """GET and DELETE /servers/ID/migrations/MIGRATION."""

    def __init__(self, migrations: Migrations) -> None:
        self._migrations = migrations

    def on_get(self, req: Any, resp: Any, server_id: str, migration_id: str) -> None:
        """One."""
        instance, task = self._migrations.one(req, server_id, migration_id, "show")
        context.answer(resp, {"migration": migration_view(task, instance)})

    def on_delete(self, req: Any, resp: Any, server_id: str, migration_id: str) -> None:
        """Abort it: accepted once a commit says that its source is told; done if that was faster."""
        _, task = self._migrations.one(req, server_id, migration_id, "delete")
        if task.step not in STATUS:
            require_running(task, "abort live migration")
        self._migrations.order(task, TASK_ABORT, context.deadline_of(req))
        log.info("migration aborted instance=%s task=%s", task.instance_uuid, task.id)
        resp.status = "202 Accepted"


class ServerMigrationAction:
    """POST /servers/ID/migrations/MIGRATION/action."""

    def __init__(self, migrations: Migrations, config: ApiConfig) -> None:
        self._migrations = migrations
        self._config = config

    def on_post(self, req: Any, resp: Any, server_id: str, migration_id: str) -> None:
        """{"force_complete": null}"""
        body = context.read_body(req, self._config.body_bytes_max)
        _, task = self._migrations.one(req, server_id, migration_id, "force_complete")
        decode(_ACTION, body)
        require_running(task, "force_complete")
        self._migrations.order(task, TASK_COMPLETE, context.deadline_of(req))
        log.info("migration completed by force instance=%s task=%s", task.instance_uuid, task.id)
        resp.status = "202 Accepted"
