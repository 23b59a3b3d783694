"""Servers that a cell has and the root has forgotten: after a restore of an older backup of the root.

A mapping goes only by the word of its cell, which keeps a tombstone: so a server of which the cell has a living row,
and owes the root nothing, was not deleted. Only a cell that was itself restored may have rows of servers that were:
those count when a host has reported them since. Decided by the project's owner, once, however often it is asked for.
"""

import logging
import time
from functools import partial
from typing import Any

from zcompute.bus.errors import InvalidRequest, Unavailable
from zcompute.conductor.change import Change, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import WrongPartition
from zcompute.conductor.root.cell_states import living
from zcompute.conductor.root.cell_words import CellSilent, ask_standings
from zcompute.conductor.root.charging import charge
from zcompute.conductor.root.intake import server_keys
from zcompute.conductor.root.placement import mapping_deleted
from zcompute.conductor.root.reconciling import books_of, usage_by
from zcompute.conductor.root.topology import require_operator
from zcompute.db.tables import CELLS, MAPPINGS
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.interface import Method
from zcompute.objects.messages.quotas import Standing
from zcompute.objects.messages.region import MappingReleaseRequest
from zcompute.objects.messages.topology import Remapped, RemapReply, RemapRequest
from zcompute.objects.methods import MAPPING_REMAP
from zcompute.objects.partition import partition_of
from zcompute.objects.remap import (
    DELETED,
    ELSEWHERE,
    MAPPED,
    MAPPED_ALREADY,
    ON_ITS_WAY,
    OTHER_PROJECT,
    OWED,
    UNCONFIRMED,
)

log = logging.getLogger(__name__)

SERVERS_MAX = 500  # of one request
PROJECT_CHARS_MAX = 255
ASK_MS_MAX = 5_000
COMMIT_MS_MAX = 10_000


def refused_by_cell(request: RemapRequest, uuid: str, standing: Standing | None) -> Remapped | None:
    """Why a server is not to be mapped by what its cell says; None where nothing speaks against it. Pure."""
    if standing is None or standing.deleted:
        return Remapped(uuid=uuid, outcome=DELETED)
    if standing.project_id != request.project_id:
        return Remapped(uuid=uuid, outcome=OTHER_PROJECT, detail=f"the cell has it in {standing.project_id or '?'}")
    if standing.owed:
        return Remapped(uuid=uuid, outcome=OWED)
    if not standing.confirmed and not request.unconfirmed:
        return Remapped(uuid=uuid, outcome=UNCONFIRMED)
    return None


def remap(change: Change, request: RemapRequest, standing: Standing) -> Remapped:
    """Map it and charge it, unless the root knows better: a build request, or a mapping that is as new. Pure."""
    uuid = standing.uuid
    books = books_of(change, uuid)
    mapping = books.mapping
    if books.build_request is not None:
        return Remapped(uuid=uuid, outcome=ON_ITS_WAY)
    if mapping is not None and mapping.cell not in (None, request.cell):
        return Remapped(uuid=uuid, outcome=ELSEWHERE, detail=f"{mapping.cell}/{mapping.generation}")
    if mapping is not None and mapping.cell == request.cell and mapping.generation >= standing.generation:
        return Remapped(uuid=uuid, outcome=MAPPED_ALREADY)
    if not request.dry_run:
        put_mapping(change, mapping, request.cell, standing)
    return Remapped(uuid=uuid, outcome=MAPPED, detail=f"{request.cell}/{standing.generation}")


def put_mapping(change: Change, former: InstanceMapping | None, cell: str, standing: Standing) -> None:
    """The mapping of the cell's generation, or above a former one's, and the usage."""
    uuid, project_id = standing.uuid, standing.project_id
    tried = [] if former is None else list(former.tried_cells)
    change.put(
        MAPPINGS,
        InstanceMapping(
            uuid=uuid,
            project_id=project_id,
            cell=cell,
            generation=standing.generation,
            tried_cells=tried,
            group_uuid=standing.group_uuid,
            revision=1 if former is None else former.revision,
        ),
    )
    charge(change, [usage_by(standing)])


class Remapping:
    """The handler. Any root conductor takes the question and hands it on to the project's owner."""

    def __init__(self, env: ConductorEnv) -> None:
        self._env = env

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators."""
        return [(MAPPING_REMAP, self.remap)]

    def remap(self, request: RemapRequest, context: Any) -> RemapReply:
        """Raises InvalidRequest, CellNotFound, Forbidden, NotOwner, Unavailable where the cell does not answer."""
        require_operator(context)
        if not 1 <= len(request.uuids) <= SERVERS_MAX:
            raise InvalidRequest(f"expected 1 to {SERVERS_MAX} servers, found {len(request.uuids)}", field="uuids")
        if not 1 <= len(request.project_id) <= PROJECT_CHARS_MAX:
            raise InvalidRequest(f"expected a project's id of 1 to {PROJECT_CHARS_MAX} characters", field="project_id")
        if self._env.forwarding.needed(request.project_id, context):
            forwarded: RemapReply = self._env.forwarding.call(request.project_id, MAPPING_REMAP, request, context)
            return forwarded
        living(self._env.store.fetch(CELLS, [(request.cell,)]).get((request.cell,)), request.cell)
        uuids = list(dict.fromkeys(request.uuids))
        found = self._decided(request, self._asked(request.cell, uuids), uuids, context)
        mapped = [uuid for uuid in uuids if found[uuid].outcome == MAPPED]
        if mapped and not request.dry_run:
            self._look_again(request, mapped, found, context)
            log.warning("audit: servers remapped cell=%s project=%s servers=%s by=%s", request.cell,
                        request.project_id, len(mapped), context.peer.service_id)  # fmt: skip
        return RemapReply(servers=[found[uuid] for uuid in uuids])

    def _asked(self, cell: str, uuids: list[str]) -> dict[str, Standing]:
        try:
            return ask_standings(self._env.endpoint, cell, uuids, ASK_MS_MAX)
        except CellSilent as silent:
            raise Unavailable(f"{silent}: try again when it answers") from silent

    def _decided(
        self, request: RemapRequest, said: dict[str, Standing], uuids: list[str], context: Any
    ) -> dict[str, Remapped]:
        """A decision for each server, all submitted before the first is waited for."""
        found: dict[str, Remapped] = {}
        tickets: dict[str, Ticket] = {}
        for uuid in uuids:
            refused = refused_by_cell(request, uuid, said.get(uuid))
            if refused is not None:
                found[uuid] = refused
                continue
            tickets[uuid] = self._env.ledger.submit(
                partition_of(request.project_id),
                server_keys(uuid, request.project_id),
                partial(remap, request=request, standing=said[uuid]),
            )
        until = time.monotonic() + self._timeout_ms(context) / 1000
        for uuid, ticket in tickets.items():
            try:
                found[uuid] = ticket.wait(max(1, int((until - time.monotonic()) * 1000)))
            except WrongPartition:
                found[uuid] = Remapped(uuid=uuid, outcome=OTHER_PROJECT, detail="the root has it in another project")
        return found

    def _look_again(self, request: RemapRequest, mapped: list[str], found: dict[str, Remapped], context: Any) -> None:
        """A server that was deleted between the cell's word and our commit: its own word came when there was nothing
        to release. What cannot be looked at now is found by the reconciler."""
        try:
            said = ask_standings(self._env.endpoint, request.cell, mapped, ASK_MS_MAX)
        except CellSilent as silent:
            log.info("remapped servers not looked at again: %s", silent)
            return
        for uuid in mapped:
            standing = said.get(uuid)
            if standing is None or not standing.deleted:
                continue
            gone = MappingReleaseRequest(
                uuid=uuid, project_id=request.project_id, cell=request.cell, generation=standing.generation
            )
            self._env.ledger.commit(
                partition_of(request.project_id),
                server_keys(uuid, request.project_id),
                partial(mapping_deleted, request=gone),
                timeout_ms=self._timeout_ms(context),
            )
            found[uuid] = Remapped(uuid=uuid, outcome=DELETED)

    @staticmethod
    def _timeout_ms(context: Any) -> int:
        return max(1, min(COMMIT_MS_MAX, int(context.remaining_ms())))
