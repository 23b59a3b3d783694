"""Which link of a listener belongs to which peer: (key name, service id), one incarnation at a time. No I/O."""

from zcompute.bus.envelope import Hello
from zcompute.bus.errors import Forbidden, FrameRefused
from zcompute.bus.identity import SINGLE_SERVICE_ROLES, Peer
from zcompute.bus.limits import Limits
from zcompute.bus.link import Link


class Sessions:
    """The links of peers that said hello here, also those lost less than `session_retention_ms` ago."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._links: dict[str, dict[str, Link]] = {}
        self._lost_at: dict[Link, float] = {}

    def all(self) -> list[Link]:
        """Every link remembered."""
        return [link for services in self._links.values() for link in services.values()]

    def find(self, hello: Hello, peer: Peer) -> tuple[Link | None, Link | None]:
        """(link to carry on, link to retire) for an admitted hello.

        The same incarnation carries its link on; another one retires it. Raises FrameRefused for a hello whose link
        number is not above the last, Forbidden when the key has too many services.
        """
        services = self._links.get(peer.key_name, {})
        known = services.get(peer.service_id)
        if known is None or known.peer is None:
            if peer.key_name:
                self._check_room(services, peer)
            return None, None
        if known.peer.incarnation != peer.incarnation:
            return None, known
        if hello.link_number <= known.core.link_number:
            raise FrameRefused(
                f"expected a link number above {known.core.link_number}, found {hello.link_number}",
                reason="stale_hello",
            )
        return known, None

    def _check_room(self, services: dict[str, Link], peer: Peer) -> None:
        up = [service_id for service_id, link in services.items() if link.up]
        if peer.role in SINGLE_SERVICE_ROLES and up:
            raise Forbidden(f"key {peer.key_name} is in use by service {up[0]!r}, one of role {peer.role} has one key")
        links_max = self._limits.links_per_key_max
        if len(up) >= links_max:
            raise Forbidden(f"key {peer.key_name} has {len(up)} links, expected at most {links_max}")

    def keep(self, peer: Peer, link: Link) -> None:
        """Remember the link of this peer."""
        self._links.setdefault(peer.key_name, {})[peer.service_id] = link
        self._lost_at.pop(link, None)

    def note_lost(self, link: Link, now: float) -> None:
        """The link went down: its time runs."""
        self._lost_at[link] = now

    def expired(self, now: float) -> list[Link]:
        """Forget, and return, the links that were lost for too long."""
        retention = self._limits.session_retention_ms / 1000
        links = [link for link, lost_at in self._lost_at.items() if now - lost_at >= retention]
        for link in links:
            self.forget(link)
        return links

    def forget(self, link: Link) -> None:
        """Remember the link no more."""
        self._lost_at.pop(link, None)
        peer = link.peer
        if peer is None:
            return
        services = self._links.get(peer.key_name, {})
        if services.get(peer.service_id) is link:
            del services[peer.service_id]
            if not services:
                self._links.pop(peer.key_name, None)
