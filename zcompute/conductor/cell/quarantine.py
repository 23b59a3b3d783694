"""Hosts that were forced down and are back: what moved away or was deleted meanwhile is destroyed before they work.

The owner of the host asks its agent what is there, and tells the owner of each instance that the host is behind on:
only an instance's owner commands (design, sections 6 and 8). Until nothing of the sort is left the host stays in
quarantine.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import gevent

from zcompute.bus.errors import BusError, Busy, Forbidden, NotOwner, UnknownMethod, UnsupportedVersion
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.commands import Commands
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.tasks.ghosts import Ghosts, has_left
from zcompute.db.errors import StoreError
from zcompute.db.tables import INSTANCES, TASKS
from zcompute.log import REPEATED
from zcompute.objects.command import DomainsReply, DomainsRequest
from zcompute.objects.errors import HostNotClean, ServiceError
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.hosts import LeftBehindRequest
from zcompute.objects.methods import DOMAINS, INSTANCE_LEFT_BEHIND
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

LOOK_S = 10.0
HOSTS_A_LOOK_MAX = 16
PAGE_ROWS = 500
PAGES_MAX = 100
ASK_MS_MAX = 3000
TELL_MS_MAX = 3000
TOLD_A_LOOK_MAX = 1000
WAY_WAIT_S = 2.0
WAY_POLL_S = 0.05
SHOWN_MAX = 20


class Quarantine:
    """Looks at the owned hosts that are forced down and can be reached, every LOOK_S, HOSTS_A_LOOK_MAX at a time."""

    def __init__(self, env: ConductorEnv, table: HostTable, commands: Commands, ghosts: Ghosts) -> None:
        self._env = env
        self._table = table
        self._commands = commands
        self._ghosts = ghosts
        self._after = ""
        self._greenlet: gevent.Greenlet | None = None

    def handlers(self) -> list[tuple[Method, Handler]]:
        """What owners of hosts tell owners of instances."""
        return [(INSTANCE_LEFT_BEHIND, self.left_behind)]

    def start(self) -> None:
        """Begin to look."""
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def left_behind(self, request: LeftBehindRequest, context: Any) -> Empty:
        """The instance's owner looks at its own row, then orders it destroyed there. Raises NotOwner, Forbidden."""
        if context.peer.cell != self._env.cell:
            raise Forbidden(f"a conductor of cell {context.peer.cell} has no say here")
        if not self._env.ledger.owns(partition_of(request.instance_uuid)):
            raise NotOwner(f"instance {request.instance_uuid} is not owned here")
        self._ghosts.suspect(request.host, request.instance_uuid)
        return Empty()

    def check(self, host: str) -> None:
        """Before the host may work again. Raises HostNotClean while it has what is elsewhere or deleted, and when
        nobody can say; Busy, Unavailable."""
        ends_at = time.monotonic() + WAY_WAIT_S
        while not self._commands.has_way(host):
            if time.monotonic() >= ends_at:
                raise HostNotClean(
                    f"host {host} is not linked, so it cannot be asked what it still has: start its agent first",
                    host=host,
                )
            gevent.sleep(WAY_POLL_S)
        try:
            left = self.left_on(host)
        except (UnknownMethod, UnsupportedVersion) as error:
            raise HostNotClean(
                f"the agent of host {host} is of an older release and cannot say what it has: upgrade it first",
                host=host,
            ) from error
        except StoreError as error:
            raise Busy(f"the cell's database does not answer now: {error}", retry_after_ms=1000) from error
        if not left:
            return
        self._tell(host, left)
        shown = ", ".join(left[:SHOWN_MAX]) + (", ..." if len(left) > SHOWN_MAX else "")
        raise HostNotClean(
            f"host {host} still has {len(left)} servers that are elsewhere or deleted, they are being destroyed there: "
            f"{shown}",
            host=host,
            servers=left[:SHOWN_MAX],
        )

    def left_on(self, host: str) -> list[str]:
        """What the host has and should have no more. Raises the bus' errors, StoreError."""
        left: list[str] = []
        after = ""
        for _ in range(PAGES_MAX):
            request = DomainsRequest(host=host, after=after, limit=PAGE_ROWS)
            reply: DomainsReply = self._commands.send(host, DOMAINS, request, timeout_ms=ASK_MS_MAX)
            left += self._of_others(host, reply.uuids)
            if not reply.more or not reply.uuids:
                return left
            after = reply.uuids[-1]
        raise Busy(f"host {host} has more than {PAGES_MAX * PAGE_ROWS} domains", retry_after_ms=1000)

    def _of_others(self, host: str, uuids: Sequence[str]) -> list[str]:
        """At the primary; an instance's task is read behind it. A domain of no instance is nobody's to destroy."""
        if not uuids:
            return []
        rows = self._env.store.fetch(INSTANCES, [(uuid,) for uuid in uuids])
        ids = [(row.task_id,) for row in rows.values() if row.task_id is not None]
        tasks = self._env.store.fetch(TASKS, ids) if ids else {}
        return [
            row.uuid
            for row in rows.values()
            if has_left(row, tasks.get((row.task_id,)) if row.task_id is not None else None, host)
        ]

    def _tell(self, host: str, left: Sequence[str]) -> None:
        for uuid in left[:TOLD_A_LOOK_MAX]:
            request = LeftBehindRequest(host=host, instance_uuid=uuid)
            try:
                self._env.router.call(uuid, INSTANCE_LEFT_BEHIND, request, timeout_ms=TELL_MS_MAX)
            except (BusError, ServiceError) as error:
                log.info("owner not told of what is left host=%s uuid=%s error=%s", host, uuid, error)

    def _loop(self) -> None:
        while True:
            gevent.sleep(LOOK_S)
            for host in self._next_hosts():
                try:
                    self._tell(host, self.left_on(host))
                except (BusError, ServiceError, StoreError) as error:
                    log.info("quarantined host not looked at host=%s error=%s", host, error, extra=REPEATED)

    def _next_hosts(self) -> list[str]:
        names = sorted(host.name for host in self._table if host.forced_down and self._commands.has_way(host.name))
        page = [name for name in names if name > self._after][:HOSTS_A_LOOK_MAX]
        self._after = page[-1] if len(page) == HOSTS_A_LOOK_MAX else ""
        return page
