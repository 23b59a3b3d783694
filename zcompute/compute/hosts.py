"""The hosts of this agent: each begins an epoch at its owner, beats there, and falls silent when another takes it."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gevent

from zcompute.bus import BusError, DeadlineExceeded, Link, LinkReset, NotOwner
from zcompute.compute.backoff import Backoff
from zcompute.compute.ending import end_all
from zcompute.compute.links import ConductorLinks
from zcompute.compute.settings import Settings
from zcompute.objects.epochs import history_of
from zcompute.objects.errors import EpochRefused, ServiceError
from zcompute.objects.host import HostInventory
from zcompute.objects.messages.cluster import HostEpoch
from zcompute.objects.messages.hosts import HostBeat, HostBeginReply, HostBeginRequest
from zcompute.objects.methods import HOST_BEAT, HOST_BEGIN
from zcompute.objects.partition import PARTITIONS

log = logging.getLogger(__name__)


@dataclass
class HostSession:
    """One host. ``epoch`` None: not begun. ``superseded``: another agent serves it, this one is silent for good.

    ``answers_lost`` counts begins whose answer did not come; each may have raised the epoch behind our back. Commands
    are obeyed from ``commands_at`` (monotonic).
    """

    inventory: HostInventory
    epoch: int | None = None
    superseded: bool = False
    answers_lost: int = 0
    commands_at: float = 0.0

    @property
    def name(self) -> str:
        return self.inventory.name


class Hosts:
    """Sessions by name. ``on_begun(host)``, ``on_silent(host)``, ``on_owner_epochs(epochs)`` and ``in_doubt()``
    (whether records of a former agent are lost) are set by the service."""

    def __init__(
        self, inventories: list[HostInventory], service_id: str, links: ConductorLinks, settings: Settings
    ) -> None:
        self._sessions = {inventory.name: HostSession(inventory) for inventory in inventories}
        self._service_id = service_id
        self._links = links
        self._settings = settings
        self._beginning: dict[str, gevent.Greenlet] = {}
        self.in_doubt: Callable[[], bool] = lambda: False
        self.on_owner_epochs: Callable[[list[int]], None] = lambda _: None
        self.on_begun: Callable[[str], None] = lambda _: None
        self.on_silent: Callable[[str], None] = lambda _: None

    def get(self, name: str) -> HostSession | None:
        return self._sessions.get(name)

    def epochs(self) -> dict[str, int]:
        """Epochs of the hosts that this agent speaks for."""
        return {s.name: s.epoch for s in self._sessions.values() if s.epoch is not None and not s.superseded}

    def start(self) -> None:
        """Begin every host's epoch, however long its owner takes to answer."""
        for session in self._sessions.values():
            self._begin(session)

    def stop(self) -> None:
        end_all(self._beginning.values(), "begins of hosts")

    # -- epochs ----------------------------------------------------------------------------------------------------

    def _begin(self, session: HostSession) -> None:
        self._beginning[session.name] = gevent.spawn(self._run_begin, session)

    def _run_begin(self, session: HostSession) -> None:
        backoff = Backoff(self._settings.retry_ms_min, self._settings.retry_ms_max)
        while True:
            link = self._links.way_to(session.name)
            if link is None:
                self._links.wait_change(self._settings.retry_ms_max / 1000)
                continue
            epoch = self._ask_epoch(session, link)
            if epoch is not None:
                session.epoch = epoch
                log.info("host begun host=%s agent_epoch=%d", session.name, epoch)
                self.on_begun(session.name)
                return
            gevent.sleep(backoff.next_s())

    def _ask_epoch(self, session: HostSession, link: Link) -> int | None:
        in_doubt = self.in_doubt()
        request = HostBeginRequest(inventory=session.inventory, service_id=self._service_id, in_doubt=in_doubt)
        try:
            reply: HostBeginReply = link.call(HOST_BEGIN, request, timeout_ms=self._settings.begin_ms)
        except NotOwner as error:
            log.info("host not begun, asking for the map host=%s error=%s", session.name, error)
            self._links.refused(session.name, link)
            self._links.refresh(link)
            return None
        except (DeadlineExceeded, LinkReset) as error:
            session.answers_lost += 1
            log.warning("host.begin without answer host=%s error=%s", session.name, error)
            return None
        except (BusError, ServiceError) as error:
            log.warning("host not begun host=%s error=%s", session.name, error)
            self._links.refused(session.name, link)
            return None
        if in_doubt and reply.agent_epoch > 1:  # a host's first agent has forgotten nothing
            if len(reply.owner_epochs) == PARTITIONS:
                self.on_owner_epochs(reply.owner_epochs)
            session.commands_at = time.monotonic() + self._settings.doubt_ms / 1000
        return reply.agent_epoch

    def refused(self, error: EpochRefused, sent: Mapping[str, int]) -> None:
        """A conductor does not accept a host's epoch, one of those ``sent`` to it.

        Superseded means another agent, unless a begin of our own whose answer was lost raised the epoch: then the
        host begins once more; so it does when the cell was restored from a backup, which began a new history. Any other
        refusal (the row is behind us) begins anew too.
        """
        session = self._sessions.get(str(error.details.get("host", "")))
        if session is None or session.epoch is None or session.epoch != sent.get(session.name):
            log.info("refusal of an epoch that is not ours now: %s", error)
            return
        committed = error.details.get("epoch")
        restored = isinstance(committed, int) and history_of(committed) > history_of(session.epoch)
        if error.details.get("verdict") == "superseded" and not session.answers_lost and not restored:
            session.superseded = True
            log.critical(
                "ALARM another agent has taken the host, this one is silent for it host=%s agent_epoch=%d",
                session.name,
                session.epoch,
            )
            self.on_silent(session.name)
            return
        log.warning("epoch refused, beginning again host=%s agent_epoch=%d: %s", session.name, session.epoch, error)
        session.epoch, session.answers_lost = None, 0
        self.on_silent(session.name)
        self._begin(session)

    def news(self, news: HostEpoch) -> bool:
        """A conductor has heard of an agent's epoch: whether that is one above ours, so that we must ask."""
        session = self._sessions.get(news.host)
        return session is not None and session.epoch is not None and news.agent_epoch > session.epoch

    @property
    def all_superseded(self) -> bool:
        """Whether other agents serve every host of this one."""
        return all(session.superseded for session in self._sessions.values())

    # -- beats -----------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Tell each owner, by relays where no link leads to it, that its hosts are alive. A beat that cannot be sent is
        simply missed."""
        by_link: dict[Link, list[str]] = {}
        for name in self.epochs():
            for link in self._links.ways_to(name):
                by_link.setdefault(link, []).append(name)
        for link, names in by_link.items():
            try:
                link.cast(HOST_BEAT, HostBeat(hosts=names))
            except BusError as error:
                log.info("beat not sent peer=%s error=%s", link.name, error)
