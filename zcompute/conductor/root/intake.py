"""Deciding on what clients ask of the root: create servers, delete one that no cell has yet. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from zcompute.cells.choice import Wanted
from zcompute.conductor.change import Change
from zcompute.conductor.notices import build_request_deleted
from zcompute.conductor.root.charging import (
    Key,
    allowed_count,
    amount_of,
    charge,
    limits_of,
    release,
    total_key,
    total_of,
)
from zcompute.conductor.root.grouping import Chooser, Room, check_members, choose_cell_of, rule_of
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, OPERATIONS, QUOTAS, SERVER_GROUPS, USAGES
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest, InstanceMapping, Operation, Usage
from zcompute.objects.errors import FlavorNotFound, InstanceNotFound, OperationConflict
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import ServerSpec
from zcompute.objects.messages.region import (
    ServerDeleteReply,
    ServerDeleteRequest,
    ServersCreateReply,
    ServersCreateRequest,
)
from zcompute.objects.quota import Limits

KIND_CREATE = "create"
KIND_DELETE = "delete"
ANY_ROOM = Room()


@dataclass(frozen=True)
class Created:
    """The answer, and the build requests to be handed off: none for a repeat."""

    reply: ServersCreateReply
    build_requests: list[BuildRequest] = field(default_factory=list)


def instance_not_found(uuid: str) -> InstanceNotFound:
    """In Nova's words."""
    return InstanceNotFound(f"Instance {uuid} could not be found.", uuid=uuid)


def _rows_of(uuid: str) -> list[Key]:
    return [(MAPPINGS, (uuid,)), (BUILD_REQUESTS, (uuid,)), (USAGES, (uuid,))]


def server_keys(uuid: str, project_id: str) -> list[Key]:
    """Every row that the root may have of one server, and the total that changes with them."""
    return [*_rows_of(uuid), total_key(project_id)]


def delete_unbuilt(change: Change, build_request: BuildRequest, request_id: str) -> None:
    """A server that no cell has is deleted, and told to be."""
    for notification in build_request_deleted(build_request, change.now_us, request_id, change.packed):
        change.notify(notification)
    delete_server_rows(change, build_request.uuid)


def delete_server_rows(change: Change, uuid: str) -> None:
    """The server is gone: no mapping, no usage, no build request."""
    release(change, uuid)
    change.delete(MAPPINGS, (uuid,))
    change.delete(BUILD_REQUESTS, (uuid,))


def create_keys(request: ServersCreateRequest, uuids: Sequence[str]) -> list[Key]:
    """The rows that `create_servers` touches."""
    project_id = request.project_id
    keys: list[Key] = [(OPERATIONS, (project_id, request.operation_id)), (QUOTAS, (project_id,)), total_key(project_id)]
    if request.group_uuid:
        keys.append((SERVER_GROUPS, (request.group_uuid,)))
    for uuid in uuids:
        keys.extend(_rows_of(uuid))
    return keys


def server_names(name: str, count: int) -> list[str]:
    """Nova's multi-create: "name-1" to "name-N", and the bare name for a single one."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def _specs(spec: ServerSpec, count: int, reservation_id: str) -> list[ServerSpec]:
    hostnames = server_names(spec.hostname, count) if spec.hostname else [""] * count
    return [
        replace(spec, launch_index=index, reservation_id=reservation_id, hostname=hostnames[index])
        for index in range(count)
    ]


def _former(change: Change, project_id: str, operation_id: str, kind: str, digest: str) -> Operation | None:
    """The operation's first outcome. Raises OperationConflict when its id was used for something else."""
    operation = change.get(OPERATIONS, (project_id, operation_id))
    if operation is not None and (operation.kind != kind or operation.digest != digest):
        raise OperationConflict(
            f"operation {operation_id} was accepted for another request: use a new operation id",
            operation_id=operation_id,
        )
    return operation


def create_servers(
    change: Change,
    request: ServersCreateRequest,
    flavor: Flavor | None,
    uuids: Sequence[str],
    reservation_id: str,
    choose: Chooser,
    request_id: str,
    default: Limits,
    room: Room = ANY_ROOM,
) -> Created:
    """One operation, and per server its usage, mapping and build request; or what the same operation gave before.

    ``uuids`` are as many as were asked for at most: the first are used, as far as the quota goes (``default`` where
    the project has no limit of its own). ``room``: of the server group that is asked for. Raises OperationConflict for
    an operation id that was used for another request, FlavorNotFound without a flavor (a repeat needs none: it may be
    gone by now), ServerGroupNotFound, QuotaExceeded.
    """
    former = _former(change, request.project_id, request.operation_id, KIND_CREATE, request.digest)
    if former is not None:
        return Created(ServersCreateReply(uuids=list(former.uuids), reservation_id=former.reservation_id))
    if flavor is None:
        raise FlavorNotFound(f"Flavor {request.flavorid} could not be found.", flavor=request.flavorid)
    rule = rule_of(change, request.group_uuid, request.project_id)
    limits = limits_of(change, request.project_id, default)
    used = total_of(change, request.project_id).used
    uuids = uuids[: allowed_count(limits, used, amount_of(flavor), request.min_count, len(uuids))]
    check_members(room, rule, len(uuids))
    change.put(
        OPERATIONS,
        Operation(
            operation_id=request.operation_id,
            project_id=request.project_id,
            kind=KIND_CREATE,
            digest=request.digest,
            uuids=list(uuids),
            reservation_id=reservation_id,
            created_at_us=change.now_us,
        ),
    )
    names = server_names(request.name, len(uuids))
    specs = _specs(replace(request.spec, group=rule), len(uuids), reservation_id)
    wanted = Wanted(flavor.amounts(), request.spec.availability_zone)
    group = None if rule is None else rule.uuid
    build_requests = []
    for uuid, name, spec in zip(uuids, names, specs, strict=True):
        cell = choose_cell_of(change, rule, wanted, (), choose, room.seen)
        build_request = BuildRequest(
            uuid=uuid,
            project_id=request.project_id,
            user_id=request.user_id,
            name=name,
            flavor=flavor,
            spec=spec,
            operation_id=request.operation_id,
            request_id=request_id,
            created_at_us=change.now_us,
            cell=cell,
        )
        change.put(MAPPINGS, InstanceMapping(uuid=uuid, project_id=request.project_id, cell=cell, group_uuid=group))
        change.put(BUILD_REQUESTS, build_request)
        build_requests.append(build_request)
    charge(change, [usage_of(build_request) for build_request in build_requests])
    return Created(ServersCreateReply(uuids=list(uuids), reservation_id=reservation_id), build_requests)


def wanted_of(build_request: BuildRequest) -> Wanted:
    """What the server needs of a cell."""
    return Wanted(build_request.flavor.amounts(), build_request.spec.availability_zone)


def usage_of(build_request: BuildRequest) -> Usage:
    """What one server counts against its project."""
    return Usage(
        uuid=build_request.uuid,
        project_id=build_request.project_id,
        cores=build_request.flavor.vcpus,
        ram_mb=build_request.flavor.memory_mb,
    )


def delete_keys(request: ServerDeleteRequest) -> list[Key]:
    """The rows that `delete_server` touches."""
    operation = (OPERATIONS, (request.project_id, request.operation_id))
    return [operation, *server_keys(request.uuid, request.project_id)]


def delete_server(change: Change, request: ServerDeleteRequest, request_id: str = "") -> ServerDeleteReply:
    """Delete a server that is still the root's, or say which cell has it.

    In error, or given to no cell yet: all its rows go at once. Being handed off: marked, shown as being deleted, and
    deleted in the cell once that has answered (silence does not say that it was not built); asking again is accepted
    again. Raises InstanceNotFound, OperationConflict.
    """
    digest = f"{KIND_DELETE} {request.uuid}"
    if _former(change, request.project_id, request.operation_id, KIND_DELETE, digest) is not None:
        return ServerDeleteReply(accepted=True)
    mapping = change.get(MAPPINGS, (request.uuid,))
    build_request = change.get(BUILD_REQUESTS, (request.uuid,))
    if mapping is None or mapping.project_id != request.project_id:
        raise instance_not_found(request.uuid)
    if build_request is None:
        return ServerDeleteReply(accepted=False, cell=mapping.cell)
    if build_request.state == BUILD_ERROR or build_request.cell is None:
        delete_unbuilt(change, build_request, request_id)
    elif not build_request.delete_requested:
        change.put(BUILD_REQUESTS, replace(build_request, delete_requested=True))
    change.put(
        OPERATIONS,
        Operation(
            operation_id=request.operation_id,
            project_id=request.project_id,
            kind=KIND_DELETE,
            digest=digest,
            uuids=[request.uuid],
            created_at_us=change.now_us,
        ),
    )
    return ServerDeleteReply(accepted=True)
