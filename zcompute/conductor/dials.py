"""Which conductors this one dials: of its own cell those with a higher id (one link a pair), of the root all."""

import logging
from collections.abc import Iterable, Mapping

from zcompute.bus import BusError, Endpoint, Link
from zcompute.config import PeerConfig
from zcompute.objects.partition import ConductorInfo

log = logging.getLogger(__name__)

Place = tuple[str, str]  # address, public key


def places(
    configured: Iterable[PeerConfig], mapped: Mapping[str, ConductorInfo], above: str | None
) -> dict[str, Place]:
    """Where to dial, by service id: what is configured, and what the map knows better. Pure.

    ``above``: only ids that sort behind this one (the others dial here); None for all.
    """
    known = {peer.id: (peer.address, peer.public_key) for peer in configured}
    known.update({info.service_id: (info.address, info.public_key) for info in mapped.values() if info.address})
    return {name: place for name, place in known.items() if above is None or name > above}


class Dials:
    """Keeps the links of one group of conductors."""

    def __init__(self, endpoint: Endpoint, configured: Iterable[PeerConfig], above: str | None) -> None:
        self._endpoint = endpoint
        self._configured = list(configured)
        self._above = above
        self._links: dict[str, tuple[Place, Link]] = {}

    def update(self, mapped: Mapping[str, ConductorInfo]) -> None:
        """Dial who is new or elsewhere now, hang up on who is neither configured nor in the map any more."""
        wanted = places(self._configured, mapped, self._above)
        for name, (place, link) in list(self._links.items()):
            if wanted.get(name) != place:
                log.info("hanging up on=%s address=%s", name, place[0])
                self._endpoint.hang_up(link)
                del self._links[name]
        for name, place in wanted.items():
            if name not in self._links:
                try:
                    self._links[name] = (place, self._endpoint.dial(*place))
                except BusError as error:  # one conductor's odd address keeps us from no other
                    log.error("conductor not dialled peer=%s address=%s error=%s", name, place[0], error)
