"""Hosts: a new agent takes its host up, links are attached under a checked epoch, beats decide up and down."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import gevent
import msgspec

from zcompute.bus import CallContext, Link
from zcompute.bus.errors import Forbidden, InvalidRequest, NotOwner
from zcompute.conductor.cell.fencing import FENCE_MS_MAX, Fencing
from zcompute.conductor.cell.host_news import HostNews, news_of
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.liveness import Liveness
from zcompute.conductor.cell.relay import Relay
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change
from zcompute.conductor.commands import Commands
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.fellows import Fellows
from zcompute.config import FencingConfig
from zcompute.db.tables import HOSTS
from zcompute.objects.errors import EpochRefused, HostNotFound
from zcompute.objects.host import HOST_DOWN, HOST_UP, Host, HostInventory
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty, HostEpoch
from zcompute.objects.messages.hosts import (
    HostAttachRequest,
    HostBeat,
    HostBeginReply,
    HostBeginRequest,
    HostForceDownReply,
    HostForceDownRequest,
)
from zcompute.objects.methods import HOST_ATTACH, HOST_BEAT, HOST_BEGIN, HOST_FORCE_DOWN, RELAY_BEAT, RELAY_BEGIN
from zcompute.objects.partition import partition_of
from zcompute.objects.relay import RelayedBeat, RelayedBegin
from zcompute.objects.report import VERDICT_INVALID, VERDICT_SUPERSEDED

log = logging.getLogger(__name__)

T = TypeVar("T")

Rows = Mapping[tuple[str, ...], Host]


def begin_host(host: Host | None, inventory: HostInventory, service_id: str, now_us: int) -> Host:
    """The host's row under a new agent: one epoch above the former, what the agent has counted, up. Pure.

    ``used`` and the operator's flags stay as they are.
    """
    if host is None:
        return Host(
            name=inventory.name,
            service_id=service_id,
            total=inventory.total,
            hypervisor_type=inventory.hypervisor_type,
            hypervisor_hostname=inventory.hypervisor_hostname or inventory.name,
            availability_zone=inventory.availability_zone,
            agent_epoch=1,
            state=HOST_UP,
            created_at_us=now_us,
            updated_at_us=now_us,
        )
    return msgspec.structs.replace(
        host,
        service_id=service_id,
        total=inventory.total,
        hypervisor_type=inventory.hypervisor_type,
        hypervisor_hostname=inventory.hypervisor_hostname or inventory.name,
        availability_zone=inventory.availability_zone,
        agent_epoch=host.agent_epoch + 1,
        state=HOST_UP,
        updated_at_us=now_us,
    )


def force_down(host: Host | None, request: HostForceDownRequest, now_us: int) -> HostForceDownReply:
    """The row as it is, or would be, and whether that is a change. Pure. Raises HostNotFound."""
    if host is None:
        raise HostNotFound(f"host {request.host} is not known in this cell", host=request.host)
    if host.forced_down == request.forced_down:
        return HostForceDownReply(host=host, changed=False)
    changed = msgspec.structs.replace(host, forced_down=request.forced_down, updated_at_us=now_us)
    return HostForceDownReply(host=changed, changed=True)


def check_epoch(name: str, host: Host | None, epoch: int, told: int = 0) -> None:
    """Raises EpochRefused: superseded for an older agent's epoch, invalid for one that was never given.

    ``told``: the epoch of which a conductor has told us since the row was read.
    """
    committed = max(told, 0 if host is None else host.agent_epoch)
    if epoch == committed and committed:
        return
    verdict = VERDICT_SUPERSEDED if epoch < committed else VERDICT_INVALID
    raise EpochRefused(
        f"host {name}: the agent's epoch is {epoch}, the host's is {committed}: begin the host anew",
        host=name,
        epoch=committed,
        verdict=verdict,
    )


@dataclass
class Attachments:
    """Which epochs each link speaks under. A host that is not attached to a link is not listened to on it."""

    by_link: dict[Link, dict[str, int]] = field(default_factory=dict)
    _links_of: dict[str, set[Link]] = field(default_factory=dict)

    def attach(self, link: Link, epochs: Mapping[str, int]) -> None:
        """The link may speak for these hosts."""
        self.by_link.setdefault(link, {}).update(epochs)
        for host in epochs:
            self._links_of.setdefault(host, set()).add(link)

    def detach(self, link: Link) -> list[str]:
        """The link is gone; returns the hosts for which it could speak."""
        hosts = list(self.by_link.pop(link, {}))
        for host in hosts:
            self._forget(host, link)
        return hosts

    def supersede(self, host: str, agent_epoch: int) -> list[tuple[Link, int]]:
        """Links that spoke for the host under an older epoch, and no longer may; with that epoch."""
        links = self._links_of.get(host, ())
        older = [(link, epoch) for link in links if (epoch := self.by_link[link][host]) < agent_epoch]
        for link, _ in older:
            del self.by_link[link][host]
            self._forget(host, link)
        return older

    def _forget(self, host: str, link: Link) -> None:
        links = self._links_of.get(host, set())
        links.discard(link)
        if not links:
            self._links_of.pop(host, None)

    def epoch(self, link: Link, host: str) -> int | None:
        """The epoch under which this link reports the host, None when it may not."""
        epochs = self.by_link.get(link)
        return None if epochs is None else epochs.get(host)


class Hosts:
    """The handlers of interface ``host`` and the liveness of the owned hosts.

    What an agent says of hosts that are others' to serve goes to their owners by the ``relay``, and what theirs hand on
    comes in here.
    """

    def __init__(
        self,
        env: ConductorEnv,
        table: HostTable,
        commands: Commands,
        relay: Relay,
        fellows: Fellows,
        settings: CellSettings,
        fencing: Fencing | None = None,
        check_clean: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._env = env
        self._check_clean = check_clean
        self._fencing = fencing or Fencing(FencingConfig(), env.cell)
        self._table = table
        self._commands = commands
        self._relay = relay
        self._fellows = fellows
        self._settings = settings
        self._forwarding = env.forwarding
        self._liveness = Liveness(settings.liveness)
        self._greenlet: gevent.Greenlet | None = None
        self._alarm_at = 0.0
        self._attaching: dict[int, dict[str, int]] = {}  # by id: epochs that are just being checked at the primary
        self.attachments = Attachments()
        self._news = HostNews(env.endpoint, env.cell, table, self.heard)

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Interface ``host``, and what a relay hands on to the owner of a host."""
        return [
            (HOST_BEGIN, self.begin),
            (HOST_ATTACH, self.attach),
            (HOST_BEAT, self.beat),
            (HOST_FORCE_DOWN, self.force_down),
            (RELAY_BEGIN, self.relayed_begin),
            (RELAY_BEAT, self.relayed_beat),
        ]

    def start(self) -> None:
        """Listen for epochs and lost links, and watch."""
        self._news.start()
        self._env.endpoint.on_link_down(self.link_down)
        self._greenlet = gevent.spawn(self._watch)

    def stop(self) -> None:
        """End watching."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    # -- handlers ---------------------------------------------------------------------------------------------------

    def begin(self, request: HostBeginRequest, context: CallContext) -> HostBeginReply:
        """A new agent takes up its host; handed on when another owns it. Raises NotOwner, Forbidden, Busy."""
        _check_hosts(context, [request.inventory.name])
        try:
            return self._begin(request.inventory, context.peer.service_id, request.in_doubt)
        except NotOwner:
            return self._relay.begin(request, context)

    def relayed_begin(self, request: RelayedBegin, context: CallContext) -> HostBeginReply:
        """The same, handed on by a fellow conductor. Raises NotOwner, Forbidden."""
        self._fellows.check(context)
        return self._begin(request.inventory, request.service_id, request.in_doubt)

    def _begin(self, inventory: HostInventory, service_id: str, in_doubt: bool) -> HostBeginReply:
        def decide(change: Change) -> Host:
            host = begin_host(change.get(HOSTS, (inventory.name,)), inventory, service_id, change.now_us)
            change.put(HOSTS, host)
            return host

        host = self._commit(inventory.name, decide)
        self._liveness.begun(host.name, time.monotonic())
        self._table.put(host)
        log.info(
            "host begun host=%s service=%s epoch=%s in_doubt=%s", host.name, service_id, host.agent_epoch, in_doubt
        )
        self._news.tell([host])
        self.heard(news_of(host))
        reply = HostBeginReply(agent_epoch=host.agent_epoch)
        if in_doubt and host.agent_epoch > 1:
            # Behind the commit: whatever owner the former agent has heard of is in these rows.
            reply.owner_epochs = self._env.store.read_map().partition_map().epochs
        return reply

    def attach(self, request: HostAttachRequest, context: CallContext) -> Empty:
        """Let a link speak for hosts: each epoch is checked at the primary. Raises EpochRefused, Forbidden."""
        names = sorted(request.epochs)
        if len(names) > self._settings.attach_hosts_max:
            raise InvalidRequest(f"{len(names)} hosts in one attach, at most {self._settings.attach_hosts_max}")
        _check_hosts(context, names)
        rows, superseded = self.read(request.epochs)
        for name in names:
            try:
                check_epoch(name, rows.get((name,)), request.epochs[name], superseded.get(name, 0))
            except EpochRefused as error:
                log.warning("epoch refused host=%s from=%s error=%s", name, context.peer.service_id, error)
                if error.details.get("verdict") == VERDICT_SUPERSEDED:
                    self._env.endpoint.refusals.count("agent_epoch", context.link.name, str(error))
                raise
        link = context.link
        if not link.up:
            return Empty()
        self.attachments.attach(link, request.epochs)
        for name in names:
            row = rows.get((name,))
            if row is not None and name not in superseded:  # else the news is newer than the row
                self._commands.force_down(name, row.forced_down)
            self._commands.attach(name, link)
        return Empty()

    def read(self, names: Iterable[str]) -> tuple[Rows, dict[str, int]]:
        """The hosts' rows at the primary, and the newer epochs of which word came while they were read."""
        newer: dict[str, int] = {}
        self._attaching[id(newer)] = newer
        try:
            return self._env.store.fetch(HOSTS, [(name,) for name in names]), newer
        finally:
            del self._attaching[id(newer)]

    def beat(self, request: HostBeat, context: CallContext) -> None:
        """The agent's work loop is alive. A host that is not attached to this link is not believed."""
        now = time.monotonic()
        epochs = self.attachments.by_link.get(context.link, {})
        others = {}
        for host in request.hosts:
            if host in epochs and not self._liveness.beat(host, now):
                others[host] = epochs[host]
        if others:
            self._relay.beat(others)

    def relayed_beat(self, request: RelayedBeat, context: CallContext) -> None:
        """Beats that a fellow conductor has heard. They count under the host's present epoch only. Raises Forbidden."""
        self._fellows.check(context)
        now = time.monotonic()
        for name, agent_epoch in request.epochs.items():
            host = self._table.get(name)
            if host is not None and host.agent_epoch == agent_epoch:
                self._liveness.beat(name, now)
            else:
                found = "not owned here" if host is None else f"epoch {host.agent_epoch}"
                detail = f"beat of host {name} under epoch {agent_epoch}: {found}"
                self._env.endpoint.refusals.count("relay_beat", context.link.name, detail)

    # -- links and ownership ----------------------------------------------------------------------------------------

    def link_down(self, link: Link) -> None:
        """Whoever spoke on this link attaches anew."""
        for host in self.attachments.detach(link):
            self._commands.detach(host, link)

    def gained(self, hosts: list[Host]) -> None:
        """Hosts of partitions gained: in the table as committed, their liveness unknown.

        The former owner may have died before it told of a new agent.
        """
        now = time.monotonic()
        for host in hosts:
            self._liveness.watch(host.name, now)
            self._table.put(host)
            self.heard(news_of(host))
        self._news.tell(hosts)

    def lost(self, partitions: list[int]) -> None:
        """Others watch these now."""
        self._liveness.forget(self._table.drop(partitions))

    def force_down(self, request: HostForceDownRequest, context: CallContext) -> HostForceDownReply:
        """An operator's word, at the host's owner.

        Raises HostNotFound, InvalidRequest, FenceFailed, HostNotClean, Busy, NotOwner.
        """
        if request.fence and not request.forced_down:
            raise InvalidRequest(
                "expected fence with forced_down only: no command says that a host may work", field="fence"
            )
        if self._forwarding.needed(request.host, context):
            lasts_ms = FENCE_MS_MAX if request.fence else 0
            reply: HostForceDownReply = self._forwarding.call(
                request.host, HOST_FORCE_DOWN, request, context, lasts_ms=lasts_ms
            )
            return reply

        def decide(change: Change, *, only_look: bool = request.dry_run) -> HostForceDownReply:
            found = force_down(change.get(HOSTS, (request.host,)), request, change.now_us)
            if found.changed and not only_look:
                change.put(HOSTS, found.host)
            return found

        if not request.dry_run and (request.fence or not request.forced_down):
            planned = self._commit(request.host, lambda change: decide(change, only_look=True))
            if planned.changed and request.fence:
                self._fencing.fence(request.host)
            elif planned.changed:
                self._check_clean(request.host)
        reply = self._commit(request.host, decide)
        if reply.changed and not request.dry_run:
            if not request.forced_down:
                self._check_once_more(request.host)
            log.warning(
                "audit: host forced_down=%s host=%s by=%s fenced=%s state=%s instances=%s",
                request.forced_down, request.host, context.peer.service_id, request.fence, reply.host.state,
                reply.host.instances,
            )  # fmt: skip
            self._table.put(reply.host)
            self._news.tell([reply.host])
            self.heard(news_of(reply.host))
        return reply

    def _check_once_more(self, host: str) -> None:
        """An evacuation may have begun while the host was looked at: behind its own first commit it looks whether the
        host is forced down, we look for it behind ours. Raises HostNotClean, Busy: the host is forced down again."""
        try:
            self._check_clean(host)
        except Exception as error:
            again = HostForceDownRequest(host=host, forced_down=True)

            def decide(change: Change) -> HostForceDownReply:
                found = force_down(change.get(HOSTS, (host,)), again, change.now_us)
                change.put(HOSTS, found.host)
                return found

            self._commit(host, decide)
            log.warning("audit: host forced_down=True host=%s again, it is not clean: %s", host, error)
            raise

    def heard(self, news: HostEpoch) -> None:
        """We, or a fellow conductor, have committed, or found, this."""
        self._supersede(news.host, news.agent_epoch)
        self._commands.force_down(news.host, news.forced_down)

    def _supersede(self, host: str, agent_epoch: int) -> None:
        """A newer agent has the host: links of the older are heard no more."""
        for newer in self._attaching.values():
            newer[host] = max(agent_epoch, newer.get(host, 0))
        for link, epoch in self.attachments.supersede(host, agent_epoch):
            detail = f"host {host}: epoch {epoch} is superseded by {agent_epoch}"
            log.warning("agent superseded host=%s from=%s epoch=%s by=%s", host, link.name, epoch, agent_epoch)
            self._env.endpoint.refusals.count("agent_superseded", link.name, detail)
            self._commands.detach(host, link)
            self._news.tell_agent(link, host, agent_epoch)

    # -- up and down ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            gevent.sleep(self._settings.liveness_check_ms / 1000)
            findings = self._liveness.check(time.monotonic())
            if findings.vanished and time.monotonic() >= self._alarm_at:
                self._alarm_at = time.monotonic() + self._settings.alarm_s
                log.error(
                    "alarm: hosts vanished together, none is declared down count=%s of=%s first=%s",
                    len(findings.vanished), len(self._table), findings.vanished[0],
                )  # fmt: skip
            for host in findings.up:
                self._declare(host, HOST_UP)
            for host in findings.down:
                self._declare(host, HOST_DOWN)

    def _declare(self, name: str, state: str) -> None:
        """Commit the state, unless the row says so already (a new owner has found out what the former one knew)."""
        known = self._table.get(name)
        if known is not None and known.state == state:
            self._liveness.declared(name, state)
            return

        def decide(change: Change) -> Host | None:
            host = change.get(HOSTS, (name,))
            if host is None or host.state == state:
                return host
            host = msgspec.structs.replace(host, state=state, updated_at_us=change.now_us)
            change.put(HOSTS, host)
            return host

        try:
            host = self._commit(name, decide)
        except NotOwner:
            self._liveness.forget([name])  # a gain that came late: its owner watches it
            return
        except Exception as error:  # noqa: BLE001  # one host's row must not end the watch over all; found again soon
            log.warning("host state not committed host=%s state=%s error=%s", name, state, error)
            return
        self._liveness.declared(name, state)
        if host is not None:
            self._table.put(host)
        log.log(logging.INFO if state == HOST_UP else logging.WARNING, "host is %s host=%s", state, name)

    def _commit(self, name: str, decide: Callable[[Change], T]) -> T:
        return self._env.ledger.commit(
            partition_of(name), [(HOSTS, (name,))], decide, timeout_ms=self._settings.commit_ms_max
        )


def _check_hosts(context: CallContext, names: list[str]) -> None:
    """A compute speaks of its key's hosts only."""
    foreign = sorted(set(names) - context.peer.hosts)
    if foreign:
        log.warning("security: hosts of others from=%s hosts=%s", context.peer.service_id, ",".join(foreign[:5]))
        raise Forbidden(f"{context.peer.service_id} does not speak for hosts {foreign[:5]}")
