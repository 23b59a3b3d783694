"""What the conductors of a cell tell one another of hosts: the agent's epoch, and whether it is forced down.

Told to fellow conductors only, over links that are kept here: a conductor has thousands of links to agents, and all
of these begin at once after a power cut.
"""

import logging
from collections.abc import Callable, Iterable

import msgspec

from zcompute.bus import Endpoint, Event, Link
from zcompute.conductor.fellows import is_fellow
from zcompute.objects.host import Host
from zcompute.objects.messages.cluster import HostEpoch
from zcompute.objects.methods import TOPIC_EPOCHS

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HostEpoch).decode


class HostNews:
    """``known`` are the hosts that a fellow is told of when its link comes up; ``heard`` takes a fellow's news."""

    def __init__(
        self, endpoint: Endpoint, cell: str, known: Iterable[Host], heard: Callable[[HostEpoch], None]
    ) -> None:
        self._endpoint = endpoint
        self._cell = cell
        self._known = known
        self._heard = heard
        self._fellows: dict[Link, None] = {}

    def start(self) -> None:
        """Listen, before the first link is let in."""
        self._endpoint.on_event(TOPIC_EPOCHS, self.received)
        self._endpoint.on_link_up(self.link_up)
        self._endpoint.on_link_down(self.link_down)

    def tell(self, hosts: Iterable[Host]) -> None:
        """These were committed by us, or have become ours."""
        for host in hosts:
            payload = _payload(host)
            for link in list(self._fellows):
                link.event(TOPIC_EPOCHS, host.name, host.revision, payload)

    def tell_agent(self, link: Link, host: str, agent_epoch: int) -> None:
        """The agent on this link is not the host's any more: it is to ask, and fall silent. It need not have said that
        it wants to hear this; one of an older release leaves it aside."""
        if link.up:
            link.event(TOPIC_EPOCHS, host, agent_epoch, _encode(HostEpoch(host=host, agent_epoch=agent_epoch)))

    def link_up(self, link: Link) -> None:
        """A fellow conductor is new, or back: it may have missed news."""
        if is_fellow(link.peer, self._cell):
            self._fellows[link] = None
            for host in self._known:
                link.event(TOPIC_EPOCHS, host.name, host.revision, _payload(host))

    def link_down(self, link: Link) -> None:
        """It is told all when it is back."""
        self._fellows.pop(link, None)

    def received(self, link: Link, event: Event) -> None:
        """News, believed from fellow conductors only."""
        if not is_fellow(link.peer, self._cell):
            log.warning("epoch event refused from=%s", link.name)
            return
        self._heard(_decode(event.payload))


def news_of(host: Host) -> HostEpoch:
    """What others must know of a host. Pure."""
    return HostEpoch(host=host.name, agent_epoch=host.agent_epoch, forced_down=host.forced_down)


def _payload(host: Host) -> bytes:
    return _encode(news_of(host))
