"""The links with the other conductors of the own cell: kept apart, since a conductor has thousands with agents."""

import logging

from zcompute.bus import CallContext, Endpoint, Link, Peer
from zcompute.bus.errors import Forbidden

log = logging.getLogger(__name__)

CONDUCTOR = "conductor"


def is_fellow(peer: Peer | None, cell: str) -> bool:
    """Whether this is another conductor of the cell. The role and cell are those of its key."""
    return peer is not None and (peer.role, peer.cell) == (CONDUCTOR, cell)


class Fellows:
    """Links by service id, those that are up."""

    def __init__(self, endpoint: Endpoint, cell: str) -> None:
        self._endpoint = endpoint
        self._cell = cell
        self._links: dict[str, Link] = {}

    def start(self) -> None:
        """Listen, before the first link is let in."""
        self._endpoint.on_link_up(self.link_up)
        self._endpoint.on_link_down(self.link_down)

    def link_up(self, link: Link) -> None:
        """A link of whomever is up."""
        if is_fellow(link.peer, self._cell) and link.peer is not None:
            self._links[link.peer.service_id] = link

    def link_down(self, link: Link) -> None:
        """A link of whomever is down."""
        for service_id in [service_id for service_id, known in self._links.items() if known is link]:
            del self._links[service_id]

    def link(self, service_id: str) -> Link | None:
        """The link with this conductor, None while there is none."""
        link = self._links.get(service_id)
        return link if link is not None and link.up else None

    def links(self) -> list[Link]:
        """All that are up."""
        return [link for link in self._links.values() if link.up]

    def check(self, context: CallContext) -> None:
        """Only a conductor of this very cell hands anything on here. Raises Forbidden."""
        if not is_fellow(context.peer, self._cell):
            log.warning("security: relay refused from=%s cell=%s", context.peer.service_id, context.peer.cell)
            raise Forbidden(f"a {context.peer.role} of cell {context.peer.cell} hands nothing on in cell {self._cell}")
