"""What any root conductor answers, owner or not."""

from typing import Any

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.page_size import fitted
from zcompute.conductor.reading import ClientReads
from zcompute.conductor.root.intake import instance_not_found
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import BUILD_REQUESTS, CELLS, MAPPINGS
from zcompute.db.view import Joined, View
from zcompute.objects.build_request import BuildRequest, InstanceMapping
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import InstanceQuery
from zcompute.objects.messages.region import CellListReply, LocateReply, LocateRequest, PendingReply
from zcompute.objects.server_list import check

Located = tuple[InstanceMapping | None, BuildRequest | None]


def _locate(view: View, uuids: list[str]) -> dict[str, Located]:
    """Mapping and build request of each. A mapping is read again when it changed its cell between the two reads."""
    keys = [(uuid,) for uuid in uuids]
    mappings = view.fetch(MAPPINGS, keys)
    requests = view.fetch(BUILD_REQUESTS, keys)
    moved = [key for key in keys if key in mappings and key in requests]
    moved = [key for key in moved if mappings[key].generation != requests[key].generation]
    if moved:
        again = view.fetch(MAPPINGS, moved)
        mappings = {key: found for key, found in {**mappings, **again}.items() if key not in moved or key in again}
    return {key[0]: (mappings.get(key), requests.get(key)) for key in keys}


LOCATED: Joined[str, Located] = Joined("located", _locate)


class RootReads:
    """Reads of the root's tables, for clients."""

    def __init__(self, reads: ClientReads, settings: RootSettings) -> None:
        self._reads = reads
        self._settings = settings

    def locate(self, request: LocateRequest, context: Any) -> LocateReply:
        """Where a server is. One whose deletion in the cell is pending is still there: it is not gone before the cell
        has said so. Raises InstanceNotFound."""
        mapping, build_request = self._reads.get(context, LOCATED, request.uuid) or (None, None)
        if mapping is None or request.project_id not in (None, mapping.project_id):
            raise instance_not_found(request.uuid)
        return LocateReply(mapping=mapping, build_request=build_request)

    def pending(self, query: InstanceQuery, context: Any) -> PendingReply:
        """Build requests that belong in a list. Raises InvalidRequest."""
        try:
            check(query)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        bounded = replace(query, limit=min(query.limit, self._settings.list_rows_max))
        build_requests, cut = fitted(self._reads.read(context, lambda view: view.list_build_requests(bounded)))
        return PendingReply(build_requests=build_requests, cut=cut)

    def cell_list(self, request: Empty, context: Any) -> CellListReply:
        """Every cell that is not deleted."""
        cells = self._reads.read(context, lambda view: view.scan(CELLS, limit=self._settings.cells_max))
        return CellListReply(cells=[cell for cell in cells if not cell.deleted_at_us])
