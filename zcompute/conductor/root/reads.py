"""What any root conductor answers from its primary, owner or not."""

from typing import Any

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.root.intake import instance_not_found
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.store import Store
from zcompute.db.tables import BUILD_REQUESTS, CELLS, MAPPINGS
from zcompute.objects.methods import CellListReply, Empty, InstanceQuery, LocateReply, LocateRequest, PendingReply


class RootReads:
    """Reads of the root's tables at the primary."""

    def __init__(self, store: Store, settings: RootSettings) -> None:
        self._store = store
        self._settings = settings

    def locate(self, request: LocateRequest, context: Any) -> LocateReply:
        """Where a server is. One whose deletion in the cell is pending is still there: it is not gone before the cell
        has said so. Raises InstanceNotFound."""
        key = (request.uuid,)
        mapping = self._store.fetch(MAPPINGS, [key]).get(key)
        build_request = self._store.fetch(BUILD_REQUESTS, [key]).get(key)
        if mapping is not None and build_request is not None and mapping.generation != build_request.generation:
            mapping = self._store.fetch(MAPPINGS, [key]).get(key)  # it changed its cell between the two reads
        if mapping is None or request.project_id not in (None, mapping.project_id):
            raise instance_not_found(request.uuid)
        return LocateReply(mapping=mapping, build_request=build_request)

    def pending(self, query: InstanceQuery, context: Any) -> PendingReply:
        """Build requests that belong in a list. Raises InvalidRequest for a limit below 0."""
        if query.limit < 0:
            raise InvalidRequest(f"expected a limit of 0 or more, found {query.limit}", field="limit")
        bounded = replace(query, limit=min(query.limit, self._settings.list_rows_max))
        return PendingReply(build_requests=self._store.list_build_requests(bounded))

    def cell_list(self, request: Empty, context: Any) -> CellListReply:
        return CellListReply(cells=self._store.scan(CELLS, limit=self._settings.cells_max))
