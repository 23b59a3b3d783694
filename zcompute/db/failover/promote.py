"""Another server becomes the primary of a cell (design, section 6), by steps that may be repeated from the first.

1. Stop the IO threads, and only these, of every replica that can be reached: from then on nobody acknowledges anything
   to the primary that was lost, should it live on somewhere.
2. Wait until each has applied what it has received, and ``lease_ms``: by then nobody believes to be current by a beat.
3. Take the one that has the most; raise the cell's term there, which ends every lane and incarnation of before.
4. The others follow it; semi-synchronous replication is switched on; it takes writes; it ceases to be a replica.

A run that is cut short before step 3 has changed nothing but stopped threads; after it, the next run finds the server
by what it has written itself, and goes on with step 4.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import gevent

from zcompute.db.durability import REPLICATED, SWITCHED_ON
from zcompute.db.errors import PromotionRefused, StoreError
from zcompute.db.failover.plan import Plan, plan
from zcompute.db.failover.standing import CONNECT_S_MAX, READ_S_MAX, Standing, asked, standing_of
from zcompute.db.failover.term import newest_change, raise_term
from zcompute.db.native.connection import Connection, ServerError, store_error
from zcompute.db.native.literal import text_literal
from zcompute.db.replicas.position import NOWHERE, Position, later
from zcompute.db.url import MariaDbTarget
from zcompute.failpoints import failpoint

T = TypeVar("T")

POLL_S = 0.02
LEASE_MARGIN = 1.1  # clocks of two machines do not run alike
RETRY_S = 1  # of a replica that has lost its primary


@dataclass(frozen=True)
class Asked:
    """What an operator asks for. ``silent``: the servers configured not to acknowledge."""

    cell: str
    durability: str
    lease_ms: int
    to: str | None = None
    accept_loss: bool = False
    dry_run: bool = False
    silent: Collection[str] = ()
    applied_s_max: float = 300.0  # for what was received to be applied


@dataclass(frozen=True)
class Promoted:
    """What came of it. ``left``: servers that do not follow the new primary, with the reason; to be rebuilt."""

    primary: str
    term: int
    followers: list[str]
    left: dict[str, str]
    may_go: list[str]


class Promotion:
    """One run. ``targets``: every server of the cell with an administrator's user, in the configuration's order."""

    def __init__(self, targets: Mapping[str, MariaDbTarget], what: Asked, said: Callable[[str], None]) -> None:
        self._targets = dict(targets)
        self._what = what
        self._said = said
        self._connections: dict[str, Connection | StoreError] = {}

    def run(self) -> Promoted | None:
        """Do it; None for a dry run. Raises PromotionRefused, StoreError for a server that is lost meanwhile."""
        try:
            return self._run()
        except ServerError as error:
            raise store_error(error) from error
        finally:
            for connection in self._connections.values():
                if isinstance(connection, Connection):
                    connection.cut()

    def _run(self) -> Promoted | None:
        what = self._what
        servers = self._survey()
        found = plan(list(servers.values()), what.cell, what.durability, what.silent, what.to)
        if found.refusals:
            raise PromotionRefused(found.refusals)
        if found.begun is not None:
            self._said(f"{found.begun} has been given its term by an earlier run: going on from there")
            return None if what.dry_run else self._finish(found.begun, servers, [])
        may_go = self._list_losses(found, servers)
        if may_go and not what.accept_loss:
            raise PromotionRefused([*may_go, "bring it back, or accept the loss with --accept-loss"])
        if what.dry_run:
            self._said(f"would stop the IO threads of {', '.join(found.stop)}, and promote the one that has the most")
            return None
        self._stop_io(found)
        servers = self._wait_applied(found, servers)
        chosen = self._chosen(found, servers)
        self._said(f"{chosen} has the most, {servers[chosen].applied.text or 'nothing yet'}")
        failpoint("promote.before_term")
        term = self._do(chosen, lambda connection: raise_term(connection, new_history=bool(may_go)))
        failpoint("promote.after_term")
        self._said(f"{chosen} is in term {term}")
        return self._finish(chosen, servers, may_go)

    # -- who is there -------------------------------------------------------------------------------------------------

    def _survey(self) -> dict[str, Standing]:
        connecting = {name: gevent.spawn(_connected, target) for name, target in self._targets.items()}
        for name, each in connecting.items():
            self._connections[name] = each.get()
        return {name: asked(name, connection) for name, connection in self._connections.items()}

    def _do(self, name: str, work: Callable[[Connection], T]) -> T:
        connection = self._connections[name]
        if isinstance(connection, StoreError):
            raise connection
        return work(connection)

    def _tell(self, name: str, *statements: str) -> None:
        def work(connection: Connection) -> None:
            for statement in statements:
                connection.query(statement.encode())

        self._do(name, work)

    def _list_losses(self, found: Plan, servers: Mapping[str, Standing]) -> list[str]:
        """What may go, and from where on: what the replicas that answer will have is kept."""
        if not found.may_go:
            return []
        kept = NOWHERE
        for name in found.stop:
            kept = later(kept, later(servers[name].received, servers[name].applied))
        newest = max((self._do(name, newest_change) for name in found.stop), default="")
        lines = [*found.may_go]
        for domain, sequence in kept.domains:
            lines.append(f"what may go: every transaction of domain {domain} after number {sequence}, GTID {kept.text}")
        lines.append(f"the newest change that is applied here is of {newest or 'an unknown time'}")
        for line in lines:
            self._said(line)
        return lines

    # -- the steps ----------------------------------------------------------------------------------------------------

    def _stop_io(self, found: Plan) -> None:
        for name in found.stop:
            self._tell(name, "STOP SLAVE IO_THREAD")
            self._said(f"{name} acknowledges nothing any more")
            failpoint("promote.io_stopped")

    def _wait_applied(self, found: Plan, before: Mapping[str, Standing]) -> dict[str, Standing]:
        """What each has received is applied, and the lease is over."""
        stopped_at_s = time.monotonic()
        leased_until_s = stopped_at_s + LEASE_MARGIN * self._what.lease_ms / 1000
        waiting = [name for name in found.stop if before[name].sql_running]
        now = dict(before)
        while True:
            for name in found.stop:
                now[name] = self._do(name, partial(standing_of, name))
            stopped = [name for name in waiting if not now[name].sql_running]
            if stopped and not self._what.accept_loss:
                raise PromotionRefused([f"{name}: its SQL thread has stopped: {now[name].error}" for name in stopped])
            waiting = [name for name in waiting if name not in stopped]
            late = [name for name in waiting if not now[name].applied.covers(now[name].received)]
            now_s = time.monotonic()
            if not late and now_s >= leased_until_s:
                return now
            if late and now_s > stopped_at_s + self._what.applied_s_max:
                raise PromotionRefused([f"{name} has not applied what it received: run it again" for name in late])
            gevent.sleep(POLL_S)

    def _chosen(self, found: Plan, servers: Mapping[str, Standing]) -> str:
        """The replica that has applied what any other has. Raises PromotionRefused."""
        candidates = [name for name in found.stop if servers[name].sql_running]
        top: Position = NOWHERE
        for name in candidates:
            top = later(top, servers[name].applied)
        full = [name for name in candidates if servers[name].applied.covers(top)]
        if not full:
            raise PromotionRefused([f"no replica has all that the others have ({top.text}): rebuild one of them"])
        to = self._what.to
        if to is not None and to not in full:
            raise PromotionRefused([f"--to {to} has less than {full[0]} ({top.text}): leave it out"])
        return to or full[0]

    def _finish(self, chosen: str, servers: Mapping[str, Standing], may_go: list[str]) -> Promoted:
        """The others follow it, and it takes writes."""
        target = self._targets[chosen]
        primary = self._do(chosen, partial(standing_of, chosen))
        followers, left = [], {}
        for name, server in servers.items():
            if name == chosen:
                continue
            reason = self._repoint(name, server, target, primary)
            if reason:
                left[name] = reason
                self._said(f"{name} does not follow: {reason}")
            else:
                followers.append(name)
                self._said(f"{name} follows {chosen}")
            failpoint("promote.repointed")
        if self._what.durability == REPLICATED:
            self._tell(chosen, *SWITCHED_ON)
        failpoint("promote.before_writable")
        self._tell(chosen, "SET GLOBAL read_only = OFF")
        failpoint("promote.writable")
        self._tell(chosen, "STOP SLAVE", "RESET SLAVE ALL")
        self._said(f"{chosen} takes writes in term {primary.term}")
        return Promoted(chosen, primary.term, followers, left, may_go)

    def _repoint(self, name: str, server: Standing, target: MariaDbTarget, primary: Standing) -> str:
        """Have a replica follow the new primary; why not, where it cannot. User and password stay as they are."""
        if not server.reached:
            return f"it does not answer ({server.problem}): rebuild it before it comes back"
        if not server.follows:
            return "it was a primary, and may hold what nobody else has: rebuild it"
        if not primary.written.covers(server.applied):
            return f"it has {server.applied.text}, beyond the new primary's {primary.written.text}: rebuild it"
        host = text_literal(target.host).decode()
        try:
            self._tell(
                name,
                "STOP SLAVE",
                f"CHANGE MASTER TO master_host={host}, master_port={target.port}, master_use_gtid=slave_pos, "
                f"master_connect_retry={RETRY_S}",
                "SET GLOBAL read_only = ON",
                "START SLAVE",
            )
        except (ServerError, StoreError) as error:
            return f"it refused: {error}"
        return ""


def _connected(target: MariaDbTarget) -> Connection | StoreError:
    """A server that accepts, and says nothing, is not there either."""
    try:
        connection = Connection(target, timeout_s=CONNECT_S_MAX, connect_timeout_s=CONNECT_S_MAX)
    except StoreError as error:
        return error
    connection.wait_up_to(READ_S_MAX)
    return connection


def administered(target: MariaDbTarget, user: str, password: str) -> MariaDbTarget:
    """The same server, for its administrator."""
    return replace(target, user=user, password=password, secret=None)
