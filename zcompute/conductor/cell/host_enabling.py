"""Whether a host takes new servers, by an operator's word. What it has goes on (Nova's service disable and enable)."""

import logging

import msgspec

from zcompute.bus import CallContext
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.db.tables import HOSTS
from zcompute.objects.errors import HostNotFound
from zcompute.objects.host import Host
from zcompute.objects.interface import Method
from zcompute.objects.messages.hosts import HostEnableReply, HostEnableRequest
from zcompute.objects.methods import HOST_ENABLE
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

REASON_CHARS_MAX = 255


def enable(host: Host | None, request: HostEnableRequest, now_us: int) -> HostEnableReply:
    """The row as it is, or would be, and whether that is a change. Pure. Raises HostNotFound."""
    if host is None:
        raise HostNotFound(f"host {request.host} is not known in this cell", host=request.host)
    reason = None if request.enabled else request.reason
    if (host.disabled, host.disabled_reason) == (not request.enabled, reason):
        return HostEnableReply(host=host, changed=False)
    changed = msgspec.structs.replace(host, disabled=not request.enabled, disabled_reason=reason, updated_at_us=now_us)
    return HostEnableReply(host=changed, changed=True)


class HostEnabling:
    """The handler, at the owner of the host."""

    def __init__(self, env: ConductorEnv, table: HostTable, settings: CellSettings) -> None:
        self._ledger = env.ledger
        self._forwarding = env.forwarding
        self._table = table
        self._settings = settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        return [(HOST_ENABLE, self.enable)]

    def enable(self, request: HostEnableRequest, context: CallContext) -> HostEnableReply:
        """Committed; schedulers and claims go by it at once. Raises HostNotFound, InvalidRequest, Busy, NotOwner."""
        if request.reason is not None and (request.enabled or len(request.reason) > REASON_CHARS_MAX):
            raise InvalidRequest(
                f"expected a reason of at most {REASON_CHARS_MAX} characters, of a host to be disabled",
                field="reason",
            )
        if self._forwarding.needed(request.host, context):
            handed_on: HostEnableReply = self._forwarding.call(request.host, HOST_ENABLE, request, context)
            return handed_on

        def decide(change: Change) -> HostEnableReply:
            found = enable(change.get(HOSTS, (request.host,)), request, change.now_us)
            if found.changed and not request.dry_run:
                change.put(HOSTS, found.host)
            return found

        timeout_ms = max(1, min(self._settings.commit_ms_max, context.remaining_ms()))
        reply = self._ledger.commit(
            partition_of(request.host), [(HOSTS, (request.host,))], decide, timeout_ms=timeout_ms
        )
        if reply.changed and not request.dry_run:
            log.warning(
                "audit: host enabled=%s host=%s by=%s reason=%s",
                request.enabled, request.host, context.peer.service_id, request.reason,
            )  # fmt: skip
            self._table.put(reply.host)
        return reply
