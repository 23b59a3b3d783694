"""Deciding on which cell a server is in: the steps of the hand-off and what cells answer. Pure.

Every decision is conditional on (cell, generation) and may be repeated: the generation of mapping and build request
rises together with each change of cell.
"""

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.conductor.root.grouping import Chooser, Seen, choose_cell_of
from zcompute.conductor.root.intake import delete_server_rows, delete_unbuilt, wanted_of
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS
from zcompute.objects.build_request import BUILD_ERROR, BUILD_PENDING, BuildRequest, InstanceMapping
from zcompute.objects.instance import Fault
from zcompute.objects.messages.region import MappingReleaseRequest

NO_VALID_HOST = "No valid host was found."
FAULT_CHARS_MAX = 255  # of a message, as Nova's column


def no_valid_host(reason: str, now_us: int) -> Fault:
    """Nova's fault of a server that found no place, with the reason."""
    reason = reason.removeprefix(NO_VALID_HOST).strip()
    message = f"{NO_VALID_HOST} {reason}".strip()
    return Fault(message=message[:FAULT_CHARS_MAX], code=500, created_at_us=now_us)


def _in_error(build_request: BuildRequest, reason: str, now_us: int) -> BuildRequest:
    fault = no_valid_host(reason, now_us)
    return replace(build_request, state=BUILD_ERROR, cell=None, fault=fault)


def current_request(change: Change, uuid: str, generation: int | None = None) -> BuildRequest | None:
    """The build request, if it is still to be handed off (under this generation, where one is given)."""
    build_request = change.get(BUILD_REQUESTS, (uuid,))
    if build_request is None or build_request.state != BUILD_PENDING:
        return None
    return build_request if generation in (None, build_request.generation) else None


def assign_cell(
    change: Change,
    uuid: str,
    generation: int,
    unsent_to: str | None,
    choose: Chooser,
    give_up_at_us: int,
    nobody: str = "",
) -> BuildRequest | None:
    """Give a build request a cell that has none, or another one than ``unsent_to``, to which it was certainly never
    sent (the caller's word). The build request to go on with, its cell None as long as none is known; None when there
    is nothing left to hand off: deleted, superseded, or in ERROR because no cell was known by ``give_up_at_us``, or
    because none takes new servers (``nobody`` says why; "" where that is not certain).
    """
    build_request = current_request(change, uuid, generation)
    mapping = change.get(MAPPINGS, (uuid,))
    if build_request is None or mapping is None:
        return None
    if build_request.cell is not None and build_request.cell != unsent_to:
        return build_request
    if build_request.delete_requested:
        delete_unbuilt(change, build_request, build_request.request_id)
        return None
    tried = list(mapping.tried_cells)
    tried = tried if unsent_to is None else [*tried, unsent_to]
    cell = choose_cell_of(change, build_request.spec.group, wanted_of(build_request), tried, choose)
    if cell is None:
        if not nobody and (build_request.cell is not None or change.now_us < give_up_at_us):
            return build_request
        change.put(MAPPINGS, replace(mapping, cell=None))
        change.put(BUILD_REQUESTS, _in_error(build_request, nobody or "No cell has answered.", change.now_us))
        return None
    generation += build_request.cell is not None
    chosen = replace(build_request, cell=cell, generation=generation)
    change.put(MAPPINGS, replace(mapping, cell=cell, generation=generation))
    change.put(BUILD_REQUESTS, chosen)
    return chosen


def settle_handed(change: Change, uuid: str, generation: int) -> BuildRequest | None:
    """The cell has acknowledged: the build request goes. If its deletion was asked for meanwhile it stays, and is
    returned: the server is to be deleted in the cell first."""
    build_request = current_request(change, uuid, generation)
    if build_request is None:
        return None
    if build_request.delete_requested:
        return build_request
    change.delete(BUILD_REQUESTS, (uuid,))
    return None


def settle_deleted(change: Change, uuid: str, generation: int) -> None:
    """The cell has taken the deletion; the mapping goes when its outbox says that the server is gone."""
    if current_request(change, uuid, generation) is not None:
        change.delete(BUILD_REQUESTS, (uuid,))


def not_of_project(request: MappingReleaseRequest) -> InvalidRequest:
    """The cell names a project that the server does not belong to."""
    return InvalidRequest(f"server {request.uuid} is not of project {request.project_id}", field="project_id")


def needs_request(request: MappingReleaseRequest) -> InvalidRequest:
    """A refusal hands the server back: without its build request nobody could build it."""
    return InvalidRequest(f"a refusal of {request.uuid} needs its build request", field="build_request")


def _mapping_named(change: Change, request: MappingReleaseRequest) -> InstanceMapping | None:
    """The mapping, if the cell speaks of its present place; None for a repeat or an older generation."""
    mapping = change.get(MAPPINGS, (request.uuid,))
    if mapping is None or mapping.cell != request.cell or mapping.generation != request.generation:
        return None
    if mapping.project_id != request.project_id:
        raise not_of_project(request)
    return mapping


def mapping_deleted(change: Change, request: MappingReleaseRequest) -> bool:
    """The cell's server is gone: release everything. False when there was nothing to release."""
    if _mapping_named(change, request) is None:
        return False
    delete_server_rows(change, request.uuid)
    return True


def mapping_refused(
    change: Change, request: MappingReleaseRequest, choose: Chooser, seen: Seen | None = None
) -> BuildRequest | None:
    """The cell has definitely not built it. The build request for the next cell, None when there is none to hand off.
    ``seen``: the members of its server group.

    Raises InvalidRequest when the cell sends no build request, or another server's.
    """
    mapping = _mapping_named(change, request)
    if mapping is None:
        return None
    build_request = change.get(BUILD_REQUESTS, (request.uuid,)) or request.build_request
    if build_request is None or build_request.uuid != mapping.uuid or build_request.project_id != mapping.project_id:
        raise needs_request(request)
    if build_request.spec.group is not None and request.build_request is None:
        raise needs_request(request)
    if build_request.delete_requested:
        delete_unbuilt(change, build_request, build_request.request_id)
        return None
    tried = [*mapping.tried_cells, request.cell]
    rule, wanted = build_request.spec.group, wanted_of(build_request)
    cell = choose_cell_of(change, rule, wanted, tried, choose, seen, [request.uuid])
    if cell is None:
        change.put(MAPPINGS, replace(mapping, cell=None, tried_cells=tried))
        change.put(BUILD_REQUESTS, _in_error(build_request, request.reason, change.now_us))
        return None
    generation = mapping.generation + 1
    chosen = replace(build_request, state=BUILD_PENDING, cell=cell, generation=generation, fault=None)
    change.put(MAPPINGS, replace(mapping, cell=cell, generation=generation, tried_cells=tried))
    change.put(BUILD_REQUESTS, chosen)
    return chosen
