"""Where a server is: a bounded cache of places, and the ways to show and delete a server wherever it turns out to be.

The root's mapping is the truth; the cache only saves asking. A cached place is never a right to see a server: the cell
checks the project each time.
"""

import logging
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import gevent

from zcompute.api.action_bodies import Asked
from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS, Limits
from zcompute.bus.errors import BusError
from zcompute.objects.actions import ACTIONS, check_state
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import InstanceBusy, InstanceLocked, InstanceNotFound
from zcompute.objects.history import InstanceAction
from zcompute.objects.instance import (
    TASK_RESIZE_FINISH,
    TASK_RESIZE_MIGRATED,
    TASK_RESIZE_MIGRATING,
    TASK_RESIZE_PREP,
    Instance,
)
from zcompute.objects.messages.instances import (
    InstanceActionRequest,
    InstanceActionsReply,
    InstanceDeleteRequest,
    InstanceGetRequest,
    InstanceReply,
)
from zcompute.objects.messages.region import LocateReply, LocateRequest, ServerDeleteReply, ServerDeleteRequest
from zcompute.objects.methods import (
    INSTANCE_ACTION,
    INSTANCE_DELETE,
    INSTANCE_GET,
    INSTANCE_HISTORY,
    SERVERS_DELETE,
    SERVERS_LOCATE,
)
from zcompute.objects.server_list import as_asked_of_root, instance_of

log = logging.getLogger(__name__)

CROSSING_STATES = frozenset({TASK_RESIZE_PREP, TASK_RESIZE_MIGRATING, TASK_RESIZE_MIGRATED, TASK_RESIZE_FINISH})
"""Of a server that a delete is refused for: all other moves give way to it."""


@dataclass(frozen=True)
class Place:
    """A server is in this cell, under this generation of its mapping."""

    cell: str
    generation: int
    project_id: str


class Places:
    """Least recently used places go first when places_max is reached."""

    def __init__(self, places_max: int) -> None:
        self._places_max = places_max
        self._places: OrderedDict[str, Place] = OrderedDict()

    def get(self, uuid: str) -> Place | None:
        """The place last known."""
        place = self._places.get(uuid)
        if place is not None:
            self._places.move_to_end(uuid)
        return place

    def put(self, uuid: str, place: Place) -> None:
        """Remember; an older generation never replaces a newer one."""
        known = self._places.get(uuid)
        if known is not None and known.generation > place.generation:
            return
        self._places[uuid] = place
        self._places.move_to_end(uuid)
        if len(self._places) > self._places_max:
            self._places.popitem(last=False)

    def drop(self, uuid: str) -> None:
        """Forget."""
        self._places.pop(uuid, None)

    def __len__(self) -> int:
        return len(self._places)


class Servers:
    """Shows, acts on and deletes single servers. ``project_id`` None is an administrator's view of all projects."""

    def __init__(self, region: Region, limits: Limits = LIMITS) -> None:
        self.places = Places(limits.places_max)
        self._region = region
        self._limits = limits

    def show(self, uuid: str, project_id: str | None, deadline: Deadline) -> Instance:
        """The server as its cell has it, or as the root does while no cell has it.

        Raises InstanceNotFound, and the bus' errors when who knows does not answer.
        """
        place = self.places.get(uuid)
        if place is not None:
            known = self._at_known(place, uuid, project_id, deadline)
            if known is not None:
                return known
            self.places.drop(uuid)
        pauses = _Pauses(self._limits, deadline)
        misses = 0
        while True:
            located = self._locate(uuid, project_id, deadline)
            if located.build_request is not None:
                return self._pending(located, project_id, deadline)
            place = _place(located)
            if place is None:
                raise _not_found(uuid)
            try:
                instance = self._in_cell(place.cell, uuid, project_id, deadline.left_at_most(self._limits.read_ms_max))
            except InstanceNotFound:
                misses += 1
                if misses >= self._limits.same_place_misses_max:
                    raise
                pauses.wait()
            else:
                if not instance.crossing:
                    self.places.put(uuid, place)
                return instance

    def _at_known(self, place: Place, uuid: str, project_id: str | None, deadline: Deadline) -> Instance | None:
        """The server where it was last seen; None where it may be in another cell by now. Raises the bus' errors of a
        cell that does not answer, where the root has it there still, or does not answer either."""
        try:
            found = self._in_cell(place.cell, uuid, project_id, deadline.left_at_most(self._limits.read_ms_max))
        except InstanceNotFound:
            return None
        except BusError as silence:
            self.places.drop(uuid)
            try:
                moved = _place(self._locate(uuid, project_id, deadline)) != place
            except BusError:
                moved = False
            if not moved:
                raise silence from None
            return None
        return None if found.crossing else found

    def history(self, uuid: str, project_id: str | None, deadline: Deadline) -> InstanceActionsReply:
        """What was done with a server that is there; of one that no cell has, that it is being created.

        Raises InstanceNotFound, and the bus' errors.
        """
        self.show(uuid, project_id, deadline)
        place = self.places.get(uuid)
        if place is None:
            located = self._locate(uuid, project_id, deadline)
            if located.build_request is not None:
                return InstanceActionsReply(actions=[_creation(located.build_request)], events=[])
            place = _place(located)
            if place is None:
                raise _not_found(uuid)
        request = InstanceGetRequest(uuid=uuid, project_id=project_id)
        timeout_ms = deadline.left_at_most(self._limits.read_ms_max)
        return cast(InstanceActionsReply, self._region.ask(place.cell, INSTANCE_HISTORY, request, timeout_ms))

    def delete(self, uuid: str, caller: Caller, operation_id: str, deadline: Deadline, *, force: bool = False) -> None:
        """Delete the server, wherever it is by now. ``force``: for good, where it could be restored for a while.

        Raises InstanceNotFound when it is nowhere (any more), InstanceLocked, InstanceBusy when its state did not allow
        it until the deadline, and the bus' errors.
        """
        project_id = None if caller.is_admin else caller.project_id
        place = self.places.get(uuid)
        if place is not None and project_id not in (None, place.project_id):
            raise _not_found(uuid)
        pauses = _Pauses(self._limits, deadline)
        denied_by: list[Place] = []
        while True:
            if place is None:
                place = self._place_to_delete_at(uuid, project_id, operation_id, deadline)
                if place is None:
                    self.places.drop(uuid)
                    return
            try:
                self._delete_in_cell(place, uuid, caller, operation_id, deadline, force)
                return
            except InstanceNotFound:
                denied_by.append(place)
                if denied_by.count(place) >= self._limits.same_place_misses_max:
                    raise
            except InstanceLocked:
                raise
            except InstanceBusy as error:
                if deadline.left_ms <= self._limits.relocate_pause_ms_max:
                    raise
                if error.details.get("task_state") in CROSSING_STATES:  # for as long as its move to another cell takes
                    denied_by.append(place)
                    if denied_by.count(place) >= self._limits.same_place_misses_max:
                        raise
            except BusError:
                self.places.drop(uuid)  # it may be in another cell by now
                raise
            self.places.drop(uuid)
            place = None
            pauses.wait()

    def act(self, uuid: str, caller: Caller, asked: Asked, operation_id: str, deadline: Deadline) -> None:
        """Ask the server's cell for an action; a repeat under the same operation id changes nothing.

        Raises InstanceNotFound, InstanceBusy (its state or lock), OperationConflict, and the bus' errors.
        """
        project_id = None if caller.is_admin else caller.project_id
        place = self.places.get(uuid)
        if place is not None and project_id not in (None, place.project_id):
            raise _not_found(uuid)
        pauses = _Pauses(self._limits, deadline)
        misses = 0
        was_known = place is not None
        while True:
            place = place or self._place_to_act_at(uuid, caller, asked, deadline)
            request = InstanceActionRequest(
                uuid=uuid,
                project_id=place.project_id,
                operation_id=operation_id,
                action=asked.action,
                arguments=asked.arguments,
                administrator=caller.is_admin,
                vm_state=asked.vm_state,
                reason=asked.reason,
                name=asked.name,
                metadata=asked.metadata,
            )
            try:
                self._region.ask(place.cell, INSTANCE_ACTION, request, deadline.left_at_most(deadline.left_ms))
            except InstanceNotFound:
                self.places.drop(uuid)
                misses += 1
                if misses >= self._limits.same_place_misses_max:
                    raise
                place = None
                pauses.wait()
            except (InstanceBusy, BusError) as error:
                self.places.drop(uuid)  # it may be in another cell by now
                if not was_known or not isinstance(error, InstanceBusy):
                    raise
                place, was_known = None, False
            else:
                self.places.put(uuid, place)
                return

    # -- one question each --------------------------------------------------------------------------------------

    def _locate(self, uuid: str, project_id: str | None, deadline: Deadline) -> LocateReply:
        request = LocateRequest(uuid=uuid, project_id=project_id)
        timeout_ms = deadline.left_at_most(self._limits.read_ms_max)
        return cast(LocateReply, self._region.ask(ROOT_CELL, SERVERS_LOCATE, request, timeout_ms))

    def _in_cell(self, cell: str, uuid: str, project_id: str | None, timeout_ms: int) -> Instance:
        request = InstanceGetRequest(uuid=uuid, project_id=project_id)
        return cast(InstanceReply, self._region.ask(cell, INSTANCE_GET, request, timeout_ms)).instance

    def _pending(self, located: LocateReply, project_id: str | None, deadline: Deadline) -> Instance:
        """A server that is still a build request; its cell may have taken it meanwhile, and then knows better."""
        build_request = located.build_request
        if build_request is None:
            raise _not_found(located.mapping.uuid)
        place = _place(located)
        if place is not None and build_request.state != BUILD_ERROR and self._region.linked(place.cell):
            timeout_ms = deadline.left_at_most(self._limits.pending_probe_ms)
            try:
                instance = self._in_cell(place.cell, build_request.uuid, project_id, timeout_ms)
                return as_asked_of_root(instance, build_request)
            except InstanceNotFound:
                pass  # the usual case: it has not been handed over yet
            except BusError as error:
                log.info("cell not asked for a pending server cell=%s reason=%s", place.cell, error)
        return instance_of(build_request)

    def _place_to_delete_at(
        self, uuid: str, project_id: str | None, operation_id: str, deadline: Deadline
    ) -> Place | None:
        """The cell that must delete it; None when the root has taken the deletion on."""
        located = self._locate(uuid, project_id, deadline)
        place = _place(located)
        if place is not None and located.build_request is None:
            return place
        owner = located.mapping.project_id
        request = ServerDeleteRequest(uuid=uuid, project_id=owner, operation_id=operation_id)
        timeout_ms = deadline.left_at_most(deadline.left_ms)
        reply = cast(ServerDeleteReply, self._region.ask_owner(owner, SERVERS_DELETE, request, timeout_ms))
        if reply.accepted:
            return None
        if not reply.cell:
            raise _not_found(uuid)
        return Place(reply.cell, located.mapping.generation, owner)

    def _place_to_act_at(self, uuid: str, caller: Caller, asked: Asked, deadline: Deadline) -> Place:
        """The cell that has it. Raises InstanceBusy for one that no cell has, and InstanceNotFound."""
        project_id = None if caller.is_admin else caller.project_id
        located = self._locate(uuid, project_id, deadline)
        place = _place(located)
        if located.build_request is not None:
            action, pending = ACTIONS[asked.action], self._pending(located, project_id, deadline)
            check_state(action, pending, administrator=caller.is_admin)
            if place is None or pending.host is None:
                raise InstanceBusy(
                    f"Cannot '{action.name}' instance {uuid} while it is in vm_state {pending.vm_state}",
                    uuid=uuid, vm_state=pending.vm_state, task_state=pending.task_state or "",
                )  # fmt: skip
        if place is None:
            raise _not_found(uuid)
        return place

    def _delete_in_cell(
        self, place: Place, uuid: str, caller: Caller, operation_id: str, deadline: Deadline, force: bool
    ) -> None:
        request = InstanceDeleteRequest(
            uuid=uuid,
            project_id=place.project_id,
            operation_id=operation_id,
            administrator=caller.is_admin,
            force=force,
        )
        self._region.ask(place.cell, INSTANCE_DELETE, request, deadline.left_at_most(deadline.left_ms))


class _Pauses:
    """Growing, jittered pauses between looks."""

    def __init__(self, limits: Limits, deadline: Deadline) -> None:
        self._pause_ms = limits.relocate_pause_ms_min
        self._pause_ms_max = limits.relocate_pause_ms_max
        self._deadline = deadline

    def wait(self) -> None:
        """Raises DeadlineExceeded when no time is left."""
        gevent.sleep(self._deadline.left_at_most(self._pause_ms) * random.uniform(0.5, 1.0) / 1000)
        self._pause_ms = min(self._pause_ms * 2, self._pause_ms_max)


def _place(located: LocateReply) -> Place | None:
    mapping = located.mapping
    return Place(mapping.cell, mapping.generation, mapping.project_id) if mapping.cell else None


def _creation(build_request: BuildRequest) -> InstanceAction:
    """The only operation of a server that no cell has."""
    fault = build_request.fault
    return InstanceAction(
        instance_uuid=build_request.uuid,
        operation_id=build_request.operation_id,
        action="create",
        request_id=build_request.request_id,
        user_id=build_request.user_id,
        project_id=build_request.project_id,
        started_at_us=build_request.created_at_us,
        message="" if fault is None else fault.message,
    )


def _not_found(uuid: str) -> InstanceNotFound:
    return InstanceNotFound(f"instance {uuid} is nowhere", uuid=uuid)
