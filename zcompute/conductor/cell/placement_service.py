"""Places of server groups' members at the owner of the group: leaf calls, and the sweeper of what nobody names."""

import logging

import gevent

from zcompute.bus import CallContext
from zcompute.bus.errors import BusError
from zcompute.conductor.cell.naming import Naming
from zcompute.conductor.cell.placements import members_by_host, refusal, with_placement, without_placement
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.db.tables import GROUP_PLACEMENTS, GROUP_STANDINGS
from zcompute.failpoints import failpoint
from zcompute.objects.group import GroupPlacement
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.groups import (
    GroupHostsReply,
    GroupHostsRequest,
    PlacementReleaseRequest,
    ReserveReply,
    ReserveRequest,
)
from zcompute.objects.methods import GROUP_HOSTS, GROUP_RELEASE, GROUP_RESERVE
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

PlacementKey = tuple[str, str, str, int]


class Placements:
    """The handlers. They call nobody, so that owners cannot wait for one another.

    The group's standing is a derived row: read as all placements of the group when the group is first touched, kept
    right because whoever changes a placement names the standing with it.
    """

    def __init__(self, env: ConductorEnv, settings: CellSettings) -> None:
        self._env = env
        self._settings = settings
        self._naming = Naming(env.store)
        self._greenlet: gevent.Greenlet | None = None
        self._after: PlacementKey | None = None

    def handlers(self) -> list[tuple[Method, Handler]]:
        """What a cell serves of interface ``group``."""
        return [(GROUP_RESERVE, self.reserve), (GROUP_RELEASE, self.release), (GROUP_HOSTS, self.hosts)]

    def start(self) -> None:
        """Begin to sweep."""
        self._greenlet = gevent.spawn(self._sweep_loop)

    def stop(self) -> None:
        """End sweeping."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def reserve(self, request: ReserveRequest, context: CallContext) -> ReserveReply:
        """Grant or refuse by the group's policy, in one commit. The same place again is granted again. Raises
        NotOwner."""
        group_uuid = request.rule.uuid
        key = (group_uuid, request.instance_uuid, request.task_id, request.attempt)

        def decide(change: Change) -> ReserveReply:
            present = change.get(GROUP_PLACEMENTS, key)
            if present is not None:
                same = present.host == request.host
                reason = "" if same else f"placement {present.name} is in force on host {present.host}"
                return ReserveReply(granted=same, reason=reason)
            standing = change.get(GROUP_STANDINGS, (group_uuid,))
            reason = refusal(standing.placements if standing is not None else (), request)
            if reason:
                return ReserveReply(granted=False, reason=reason)
            placement = GroupPlacement(
                group_uuid=group_uuid,
                instance_uuid=request.instance_uuid,
                task_id=request.task_id,
                attempt=request.attempt,
                host=request.host,
                created_at_us=change.now_us,
            )
            change.put(GROUP_PLACEMENTS, placement)
            change.put(GROUP_STANDINGS, with_placement(standing, placement))
            return ReserveReply(granted=True)

        timeout_ms = min(self._settings.commit_ms_max, context.remaining_ms())
        failpoint("group.before_reserve")
        ticket = self._env.ledger.submit(partition_of(group_uuid), self._keys(key), decide)
        reply: ReserveReply = ticket.wait(timeout_ms)
        failpoint("group.after_reserve")
        return reply

    def release(self, request: PlacementReleaseRequest, context: CallContext) -> Empty:
        """Release a placement by its name; one that is not there counts as released. Raises NotOwner."""
        self._release((request.group_uuid, request.instance_uuid, request.task_id, request.attempt))
        failpoint("group.after_release")
        return Empty()

    def hosts(self, request: GroupHostsRequest, context: CallContext) -> GroupHostsReply:
        """Where the other members stand, by decisions that have committed. Raises NotOwner."""
        uuid = request.group_uuid

        def decide(change: Change) -> GroupHostsReply:
            standing = change.get(GROUP_STANDINGS, (uuid,))
            placements = standing.placements if standing is not None else ()
            others = members_by_host(placements, without=request.instance_uuid)
            return GroupHostsReply(members={host: len(uuids) for host, uuids in others.items()})

        timeout_ms = min(self._settings.commit_ms_max, context.remaining_ms())
        ticket = self._env.ledger.submit(partition_of(uuid), [(GROUP_STANDINGS, (uuid,))], decide)
        reply: GroupHostsReply = ticket.wait(timeout_ms)
        return reply

    def _release(self, key: PlacementKey) -> None:
        def decide(change: Change) -> None:
            placement = change.get(GROUP_PLACEMENTS, key)
            standing = change.get(GROUP_STANDINGS, (key[0],))
            if placement is None:
                return
            change.delete(GROUP_PLACEMENTS, key)
            if standing is not None:
                change.put(GROUP_STANDINGS, without_placement(standing, placement))

        self._env.ledger.submit(partition_of(key[0]), self._keys(key), decide).wait(self._settings.commit_ms_max)

    @staticmethod
    def _keys(key: PlacementKey) -> Keys:
        return [(GROUP_PLACEMENTS, key), (GROUP_STANDINGS, (key[0],))]

    # -- sweeping ---------------------------------------------------------------------------------------------------

    def _sweep_loop(self) -> None:
        while True:
            gevent.sleep(self._settings.sweep_s)
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next round tries again
                log.info("sweep of placements failed error=%s: %s", type(error).__name__, error)

    def sweep(self) -> int:
        """One page of the owned placements, going round; returns how many were released."""
        oldest_us = self._env.ledger.now_us() - int(self._settings.claim_age_s_min * 1e6)
        leaked = self._naming.unnamed([found for found in self._next_page() if found.created_at_us < oldest_us])
        released = 0
        for found in leaked:
            try:
                self._release(GROUP_PLACEMENTS.key_of(found))
            except BusError as error:
                log.info("leaked placement not released name=%s error=%s", found.name, error)
                continue
            released += 1
            log.warning("leaked placement released group=%s uuid=%s name=%s host=%s", found.group_uuid,
                        found.instance_uuid, found.name, found.host)  # fmt: skip
        return released

    def _next_page(self) -> list[GroupPlacement]:
        owned = self._env.ledger.owned()
        if not owned:
            self._after = None
            return []
        rows = self._settings.sweep_rows
        found = self._env.store.scan(GROUP_PLACEMENTS, partitions=owned, limit=rows, after=self._after)
        last = found[-1] if len(found) == rows else None
        self._after = None if last is None else (last.group_uuid, last.instance_uuid, last.task_id, last.attempt)
        return found
