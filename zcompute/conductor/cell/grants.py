"""Grants anew: what a host reports, told to an agent that begins and may know it no longer (design, section 6).

The owner of a partition answers for it, from committed rows. An answer that comes late does no harm: what is reported
under a grant that has passed on is superseded, and an agent that was commanded since leaves it aside.
"""

from zcompute.bus import CallContext
from zcompute.bus.errors import Forbidden, InvalidRequest, NotOwner
from zcompute.conductor.cell.relay import Relay
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.fellows import Fellows
from zcompute.db.tables import INSTANCES
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.hosts import Grant, HostGrantsReply, HostGrantsRequest
from zcompute.objects.methods import HOST_GRANTS, RELAY_GRANTS
from zcompute.objects.partition import PARTITIONS


def is_granted(instance: Instance, host: str) -> bool:
    """Whether the host reports it. What is not built yet is granted by the spawn that builds it. Pure."""
    return instance.host == host and instance.vm_state != VM_DELETED and instance.launched_at_us is not None


class Grants:
    """The handlers of ``host.grants`` and of what a relay hands on of it."""

    def __init__(self, env: ConductorEnv, relay: Relay, fellows: Fellows, settings: CellSettings) -> None:
        self._env = env
        self._relay = relay
        self._fellows = fellows
        self._settings = settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For agents, and for fellow conductors."""
        return [(HOST_GRANTS, self.grants), (RELAY_GRANTS, self.relayed)]

    def grants(self, request: HostGrantsRequest, context: CallContext) -> HostGrantsReply:
        """A page for those of the partitions that are owned here; handed on when none is.

        Raises NotOwner, Forbidden, Busy, InvalidRequest.
        """
        if request.host not in context.peer.hosts:
            raise Forbidden(f"{context.peer.service_id} does not speak for host {request.host}")
        if not request.partitions or not all(0 <= partition < PARTITIONS for partition in request.partitions):
            raise InvalidRequest(f"expected partitions of 0 to {PARTITIONS - 1}", field="partitions")
        try:
            return self._page(request)
        except NotOwner:
            return self._relay.grants(request, context)

    def relayed(self, request: HostGrantsRequest, context: CallContext) -> HostGrantsReply:
        """The same, handed on by a fellow conductor, who has checked the host. Raises NotOwner, Forbidden."""
        self._fellows.check(context)
        return self._page(request)

    def _page(self, request: HostGrantsRequest) -> HostGrantsReply:
        ledger = self._env.ledger
        before = ledger.owner_epochs(request.partitions)
        if not before:
            raise NotOwner("none of these partitions is owned here", map_version=ledger.map.version)
        rows = self._env.store.scan(
            INSTANCES,
            partitions=sorted(before),
            where={"host": request.host},
            limit=self._settings.grants_rows,
            after=(request.after,) if request.after else None,
        )
        now = ledger.owner_epochs(request.partitions)
        return HostGrantsReply(
            grants=[
                Grant(instance_uuid=row.uuid, generation=row.command_generation, reporter_generation=row.generation)
                for row in rows
                if is_granted(row, request.host)
            ],
            owner_epochs={partition: epoch for partition, epoch in before.items() if now.get(partition) == epoch},
            after=rows[-1].uuid if len(rows) == self._settings.grants_rows else "",
        )
