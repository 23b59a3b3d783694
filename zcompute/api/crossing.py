"""Which row of a server counts that both cells of its move have: the one where the root's mapping says that it is.

Cells mark such rows (Instance.crossing), which are few; for the others nobody is asked.
"""

import logging
from collections.abc import Sequence
from typing import cast

from gevent.pool import Pool

from zcompute.api.deadline import Deadline
from zcompute.api.merge import Listed
from zcompute.api.region import Region
from zcompute.bus.errors import BusError
from zcompute.log import REPEATED
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import InstanceNotFound
from zcompute.objects.instance import ARRIVING
from zcompute.objects.messages.region import LocateReply, LocateRequest
from zcompute.objects.methods import SERVERS_LOCATE

log = logging.getLogger(__name__)

LOOKS_AT_ONCE = 16
LOOK_MS_MAX = 1_000  # a list does without the root rather than without a cell


class Whereabouts:
    """Of one list: what the root has said of a server once holds for both of its rows, or the switch between two
    questions could hide both."""

    def __init__(self, region: Region, deadline: Deadline) -> None:
        self._region = region
        self._deadline = deadline
        self._known: dict[str, InstanceMapping | None] = {}
        self._root_is_silent = False

    def elsewhere(self, cell: str, rows: Sequence[Listed]) -> frozenset[str]:
        """Which of a cell's rows are of servers that are not there (yet, or any more). Where the root does not answer
        the copy that a cell has before the switch is none."""
        marked = [row for row in rows if row.crossing]
        if not marked:
            return frozenset()
        counts = Pool(LOOKS_AT_ONCE).map(lambda row: self._counts(cell, row), marked)
        return frozenset(row.uuid for row, is_there in zip(marked, counts, strict=True) if not is_there)

    def _counts(self, cell: str, row: Listed) -> bool:
        if row.uuid not in self._known and not self._root_is_silent:
            try:
                self._known.setdefault(row.uuid, self._located(row.uuid))
            except BusError as error:
                log.info("servers between two cells shown as their cells have them reason=%s", error, extra=REPEATED)
                self._root_is_silent = True
        if row.uuid not in self._known:
            return row.crossing != ARRIVING
        mapping = self._known[row.uuid]
        return mapping is not None and (mapping.cell, mapping.generation) == (cell, row.mapping_generation)

    def _located(self, uuid: str) -> InstanceMapping | None:
        request = LocateRequest(uuid=uuid)
        timeout_ms = self._deadline.left_at_most(LOOK_MS_MAX)
        try:
            return cast(LocateReply, self._region.ask(ROOT_CELL, SERVERS_LOCATE, request, timeout_ms)).mapping
        except InstanceNotFound:
            return None
