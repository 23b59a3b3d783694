"""What operators look at in a cell: its hosts' rows, and its instances for those who verify them against the root."""

from typing import Any

from zcompute.bus.errors import Forbidden, InvalidRequest, Unavailable
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.db.errors import StoreError
from zcompute.db.tables import HOSTS, INSTANCES, ROOT_OUTBOX
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import HostNotFound
from zcompute.objects.instance import (
    VM_ACTIVE,
    VM_BUILDING,
    VM_ERROR,
    VM_PAUSED,
    VM_RESCUED,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_SOFT_DELETED,
    VM_STOPPED,
    VM_SUSPENDED,
)
from zcompute.objects.interface import Method
from zcompute.objects.messages.topology import CensusReply, CensusRequest, HostListReply, HostListRequest
from zcompute.objects.methods import HOST_LIST, INSTANCE_CENSUS

LIVING = [
    VM_ACTIVE, VM_BUILDING, VM_ERROR, VM_PAUSED, VM_RESCUED, VM_RESIZED, VM_SHELVED, VM_SHELVED_OFFLOADED,
    VM_SOFT_DELETED, VM_STOPPED, VM_SUSPENDED,
]  # fmt: skip
"""Every state of a server that is there."""


class Census:
    """Pages of rows as they are at the primary: any conductor of the cell answers."""

    def __init__(self, env: ConductorEnv, settings: CellSettings) -> None:
        self._store = env.store
        self._settings = settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators."""
        return [(INSTANCE_CENSUS, self.instances), (HOST_LIST, self.hosts)]

    def instances(self, request: CensusRequest, context: Any) -> CensusReply:
        """Instances first, what is owed to the root behind them: a word that is owed meanwhile is in the answer.

        Raises InvalidRequest, Forbidden, Unavailable.
        """
        self._check(max(request.limit, len(request.uuids)), context)
        after = (request.after,) if request.after else None
        where: dict[str, Any] = {"vm_state": LIVING, **({"uuid": request.uuids} if request.uuids else {})}
        try:
            found = self._store.scan(INSTANCES, where=where, limit=request.limit, after=after)
            uuids = [instance.uuid for instance in found]
            owed = self._store.scan(ROOT_OUTBOX, where={"instance_uuid": uuids}, limit=2 * request.limit)
        except StoreError as error:
            raise Unavailable(f"the cell's database does not answer now: {error}") from error
        return CensusReply(instances=found, owed=sorted({entry.instance_uuid for entry in owed}))

    def hosts(self, request: HostListRequest, context: Any) -> HostListReply:
        """Raises HostNotFound for a name that is none, InvalidRequest, Forbidden, Unavailable."""
        self._check(request.limit, context)
        after = (request.after,) if request.after else None
        try:
            if request.name is None:
                return HostListReply(hosts=self._store.scan(HOSTS, limit=request.limit, after=after))
            found = self._store.fetch(HOSTS, [(request.name,)])
        except StoreError as error:
            raise Unavailable(f"the cell's database does not answer now: {error}") from error
        if not found:
            raise HostNotFound(f"host {request.name} is not known in this cell", host=request.name)
        return HostListReply(hosts=list(found.values()))

    def _check(self, limit: int, context: Any) -> None:
        if context.peer.cell != ROOT_CELL:
            raise Forbidden(f"an operator of cell {context.peer.cell} has no say here")
        if not 1 <= limit <= self._settings.census_rows_max:
            raise InvalidRequest(f"expected 1 to {self._settings.census_rows_max} rows, found {limit}", field="limit")
