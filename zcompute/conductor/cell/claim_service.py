"""Claims at the owner of the host: leaf calls, and the sweeper of what nobody names any more."""

import logging

import gevent

from zcompute.bus import CallContext
from zcompute.bus.errors import BusError
from zcompute.conductor.cell.claims import decide_claim, decide_release
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.naming import Naming
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.db.tables import CLAIMS, HOSTS
from zcompute.objects.host import Claim, Host
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.hosts import ClaimReply, ClaimRequest, ReleaseRequest
from zcompute.objects.methods import CLAIM, RELEASE
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

ClaimKey = tuple[str, str, int]


class Claims:
    """The handlers of interface ``claim``. They call nobody, so two owners cannot wait for one another."""

    def __init__(self, env: ConductorEnv, table: HostTable, settings: CellSettings) -> None:
        self._env = env
        self._table = table
        self._settings = settings
        self._ratios = env.config.scheduler
        self._naming = Naming(env.store)
        self._greenlet: gevent.Greenlet | None = None
        self._after: ClaimKey | None = None

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Interface ``claim``."""
        return [(CLAIM, self.claim), (RELEASE, self.release)]

    def start(self) -> None:
        """Begin to sweep."""
        self._greenlet = gevent.spawn(self._sweep_loop)

    def stop(self) -> None:
        """End sweeping."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def claim(self, request: ClaimRequest, context: CallContext) -> ClaimReply:
        """Grant or refuse, conditional on room, in one commit of claim and host. Raises NotOwner."""
        key = (request.instance_uuid, request.task_id, request.attempt)

        def decide(change: Change) -> tuple[ClaimReply, Host | None]:
            host = change.get(HOSTS, (request.host,))
            found = decide_claim(host, change.get(CLAIMS, key), request, self._ratios, change.now_us)
            if found.host is not None and found.claim is not None:
                change.put(HOSTS, found.host)
                change.put(CLAIMS, found.claim)
            return ClaimReply(granted=found.granted, reason=found.reason), found.host

        ticket = self._env.ledger.submit(partition_of(request.host), self._keys(request.host, key), decide)
        ticket.on_done(self._committed)
        reply: ClaimReply = ticket.wait(min(self._settings.commit_ms_max, context.remaining_ms()))[0]
        return reply

    def release(self, request: ReleaseRequest, context: CallContext) -> Empty:
        """Release a claim by its name; one that is not there counts as released. Raises NotOwner."""
        self._release(request.host, (request.instance_uuid, request.task_id, request.attempt))
        return Empty()

    def _release(self, host_name: str, key: ClaimKey) -> None:
        def decide(change: Change) -> tuple[None, Host | None]:
            claim = change.get(CLAIMS, key)
            host = decide_release(change.get(HOSTS, (host_name,)), claim, change.now_us)
            if host is not None:
                change.put(HOSTS, host)
                change.delete(CLAIMS, key)
            return None, host

        ticket = self._env.ledger.submit(partition_of(host_name), self._keys(host_name, key), decide)
        ticket.on_done(self._committed)
        ticket.wait(self._settings.commit_ms_max)

    def _committed(self, ticket: Ticket) -> None:
        """Runs at the commit even when the caller's deadline is over by then."""
        if ticket.error is None and ticket.result[1] is not None:
            self._table.put(ticket.result[1])

    @staticmethod
    def _keys(host: str, key: ClaimKey) -> Keys:
        return [(HOSTS, (host,)), (CLAIMS, key)]

    # -- sweeping ---------------------------------------------------------------------------------------------------

    def _sweep_loop(self) -> None:
        while True:
            gevent.sleep(self._settings.sweep_s)
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next round tries again
                log.info("sweep failed error=%s: %s", type(error).__name__, error)

    def sweep(self) -> int:
        """One page of the owned claims, going round; returns how many were released."""
        claims = self._next_page()
        oldest_us = self._env.ledger.now_us() - int(self._settings.claim_age_s_min * 1e6)
        leaked = self._naming.unnamed([claim for claim in claims if claim.created_at_us < oldest_us])
        released = 0
        for claim in leaked:
            try:
                self._release(claim.host, (claim.instance_uuid, claim.task_id, claim.attempt))
            except BusError as error:
                log.info("leaked claim not released claim=%s error=%s", claim.name, error)
                continue
            released += 1
            log.warning("leaked claim released uuid=%s claim=%s host=%s", claim.instance_uuid, claim.name, claim.host)
        return released

    def _next_page(self) -> list[Claim]:
        owned = self._env.ledger.owned()
        if not owned:
            self._after = None
            return []
        rows = self._settings.sweep_rows
        claims = self._env.store.scan(CLAIMS, partitions=owned, limit=rows, after=self._after)
        last = claims[-1] if len(claims) == rows else None
        self._after = (last.instance_uuid, last.task_id, last.attempt) if last is not None else None
        return claims
